"""What stays of a run's checkpoints, and their copies elsewhere, from which it goes on where its own are gone."""

import os
import shutil
from pathlib import Path

import pytest

from synpro_engine.config import UserError, verify_artifact
from synpro_engine.dist import SharedTransientError, Topology
from synpro_engine.train.checkpoint_directory import CHECKPOINTS, copy_record
from synpro_engine.train.config import TrainConfig
from synpro_engine.train.metrics import METRICS
from tests.train.test_trainer import CONFIG, Killed, records, same, train


def saved(directory: Path) -> dict[int, str]:
    """Content by step, all of it sound."""
    found = {int(path.name[5:]): verify_artifact(path) for path in sorted(directory.glob("step-????????"))}
    return {step: manifest.content_hash for step, manifest in found.items()}


def copied(copies: Path, **settings: object) -> TrainConfig:
    return CONFIG.model_copy(update={"checkpoint_copy": str(copies), "keep_checkpoints": 2, **settings})


def test_every_so_many_steps_a_checkpoint_stays_counted_from_the_run_s_first(
    topology: Topology, tmp_path: Path
) -> None:
    config = CONFIG.model_copy(update={"checkpoint_every": 1, "keep_checkpoints": 1, "keep_every": 2})
    first = train(topology, tmp_path / "first", config.model_copy(update={"max_steps": 5}))
    assert list(saved(tmp_path / "first" / CHECKPOINTS)) == [2, 4, 5]
    arm = config.model_copy(update={"plateau": None, "max_steps": 3})
    train(topology, tmp_path / "arm", arm, start=first.checkpoint)
    assert list(saved(tmp_path / "arm" / CHECKPOINTS)) == [7, 8]
    with pytest.raises(ValueError, match="keep_every: 3 is not a multiple of checkpoint_every"):
        TrainConfig(max_steps=1, checkpoint_every=2, keep_every=3)


@pytest.mark.parametrize("background", [False, True])
def test_copies_are_the_checkpoints_and_are_kept_by_the_same_rule(
    topology: Topology, tmp_path: Path, background: bool
) -> None:
    for step in (3, 4):  # of copies that were killed, that of a stop among them
        (tmp_path / "copies" / f"step-{step:08d}.partial" / "state").mkdir(parents=True)
    train(topology, tmp_path / "run", copied(tmp_path / "copies", async_checkpoints=background))
    assert list(saved(tmp_path / "run" / CHECKPOINTS)) == [4, 6]
    assert saved(tmp_path / "copies") == saved(tmp_path / "run" / CHECKPOINTS)
    assert not list((tmp_path / "copies").glob("*.partial"))


def test_a_run_whose_directory_is_lost_goes_on_from_the_copies_to_the_same_bits(
    topology: Topology, tmp_path: Path
) -> None:
    whole = train(topology, tmp_path / "whole")
    with pytest.raises(Killed):
        train(topology, tmp_path / "run", copied(tmp_path / "copies"), die_before=5)
    shutil.rmtree(tmp_path / "run")
    again = train(topology, tmp_path / "run", copied(tmp_path / "copies"))
    assert same(whole, again) and again.checkpoint.parent == tmp_path / "run" / CHECKPOINTS
    assert records(tmp_path / "run") == records(tmp_path / "whole")


def damage(checkpoint: Path) -> None:
    file = checkpoint / "state" / "__0_0.distcp"
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 0x55
    file.write_bytes(data)


@pytest.mark.parametrize(
    ("damaged", "goes_on_from"),
    [
        (("run/checkpoints/step-00000004",), 4),  # from its copy
        (("run/checkpoints/step-00000004", "copies/step-00000004"), 2),
        (("copies/step-00000004",), 4),
    ],
)
def test_the_newest_sound_checkpoint_of_both_places_is_gone_on_from(
    topology: Topology,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    damaged: tuple[str, ...],
    goes_on_from: int,
) -> None:
    whole = train(topology, tmp_path / "whole")
    with pytest.raises(Killed):
        train(topology, tmp_path / "run", copied(tmp_path / "copies"), die_before=5)
    for name in damaged:
        damage(tmp_path / name)
    assert same(whole, train(topology, tmp_path / "run", copied(tmp_path / "copies")))
    told = capsys.readouterr().err
    assert f"going on from step {goes_on_from}" in told
    assert ("passed over: " in told) == damaged[0].startswith("run")
    assert records(tmp_path / "run") == records(tmp_path / "whole")
    assert saved(tmp_path / "copies") == saved(tmp_path / "run" / CHECKPOINTS)


def test_a_checkpoint_that_cannot_be_read_just_now_is_not_passed_over(
    topology: Topology, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = train(topology, tmp_path / "whole")
    with pytest.raises(Killed):
        train(topology, tmp_path / "run", copied(tmp_path / "copies"), die_before=5)
    file = tmp_path / "run" / CHECKPOINTS / "step-00000004" / "state" / "__0_0.distcp"
    file.rename(tmp_path / "aside")
    file.symlink_to("/proc/self/mem")  # whose first byte the kernel refuses to read, as a failing disk does
    with pytest.raises(SharedTransientError, match=r"step-00000004/state/__0_0\.distcp: Input/output error"):
        train(topology, tmp_path / "run", copied(tmp_path / "copies"))
    (tmp_path / "aside").replace(file)
    assert same(whole, train(topology, tmp_path / "run", copied(tmp_path / "copies")))
    told = capsys.readouterr().err
    assert "going on from step 4" in told and "passed over" not in told


def test_where_nothing_sound_is_left_the_damage_is_told(topology: Topology, tmp_path: Path) -> None:
    with pytest.raises(Killed):
        train(topology, tmp_path / "run", copied(tmp_path / "copies"), die_before=3)
    for name in ("run/checkpoints/step-00000002", "copies/step-00000002"):
        damage(tmp_path / name)
    with pytest.raises(UserError, match=r"run/checkpoints/step-00000002/state/__0_0\.distcp: was changed or damaged"):
        train(topology, tmp_path / "run", copied(tmp_path / "copies"))


@pytest.mark.parametrize("sound", ["run", "copies"])
def test_what_is_saved_stays_though_a_newer_checkpoint_is_damaged(
    topology: Topology, tmp_path: Path, capsys: pytest.CaptureFixture[str], sound: str
) -> None:
    whole = train(topology, tmp_path / "whole")
    config = copied(tmp_path / "copies", checkpoint_every=1, keep_checkpoints=1, keep_every=2)
    with pytest.raises(Killed):
        train(topology, tmp_path / "run", config, die_before=4)
    checkpoints = (tmp_path / "run" / CHECKPOINTS, tmp_path / "copies")
    for place in checkpoints:
        damage(place / "step-00000004")
    if sound == "copies":
        shutil.rmtree(checkpoints[0] / "step-00000002")
    with pytest.raises(Killed):
        train(topology, tmp_path / "run", config, die_before=1)
    told = capsys.readouterr().err
    for place in checkpoints:
        assert list(saved(place)) == [2, 3] and (place / "step-00000004.damaged").exists()
        assert f"{place / 'step-00000004.damaged'}: no sound checkpoint; it goes once" in told
    assert same(whole, train(topology, tmp_path / "run", config))
    for place in checkpoints:
        assert list(saved(place)) == [2, 4, 6] and len(list(place.glob("step-*"))) == 3


@pytest.mark.parametrize("left", ["manifest", "none"])
@pytest.mark.parametrize("place", ["run", "copies", "both"])
def test_a_checkpoint_without_a_manifest_is_in_no_save_s_way(
    topology: Topology, tmp_path: Path, place: str, left: str
) -> None:
    whole = train(topology, tmp_path / "whole")
    config = copied(tmp_path / "copies")
    with pytest.raises(Killed):
        train(topology, tmp_path / "run", config, die_before=5)
    checkpoints = {"run": tmp_path / "run" / CHECKPOINTS, "copies": tmp_path / "copies"}
    for name, directory in checkpoints.items():
        if place in (name, "both"):
            manifest = directory / "step-00000004" / "manifest.json"
            manifest.write_text("") if left == "manifest" else manifest.unlink()
            if left == "none" and place == "both":  # nothing to go on from
                shutil.rmtree(directory / "step-00000002")
    assert same(whole, train(topology, tmp_path / "run", config))
    for directory in checkpoints.values():
        assert list(saved(directory)) == [4, 6] and len(list(directory.glob("step-*"))) == 2


def test_copies_of_another_run_are_refused_and_not_brought_in(topology: Topology, tmp_path: Path) -> None:
    train(topology, tmp_path / "other", copied(tmp_path / "copies", z_loss=0.5))
    with pytest.raises(UserError, match="copies/step-00000006: belongs to a run of other settings: `z_loss`"):
        train(topology, tmp_path / "run", copied(tmp_path / "copies"))
    assert not (tmp_path / "run" / CHECKPOINTS).exists()


def test_copies_of_a_run_of_the_same_settings_on_other_inputs_are_refused(topology: Topology, tmp_path: Path) -> None:
    config = copied(tmp_path / "copies")
    result = train(topology, tmp_path / "other", config, inputs="one")
    with pytest.raises(UserError, match="/copies: step-00000006 is of a run that was made from other text, weights or"):
        train(topology, tmp_path / "run", config, inputs="two")
    assert not (tmp_path / "run" / CHECKPOINTS).exists()
    assert same(result, train(topology, tmp_path / "lost", config, inputs="one"))
    # Of before they were noted, and by a caller who gives none.
    train(topology, tmp_path / "older", copied(tmp_path / "olds"))
    assert same(result, train(topology, tmp_path / "newer", copied(tmp_path / "olds"), inputs="one"))
    assert same(result, train(topology, tmp_path / "script", config))


def test_a_place_for_copies_that_takes_none_ends_the_job_with_its_path(topology: Topology, tmp_path: Path) -> None:
    (tmp_path / "copies").write_text("")
    with pytest.raises(UserError, match=r"copies/step-00000002: cannot be copied from .*Not a directory"):
        train(topology, tmp_path / "run", copied(tmp_path / "copies"))


def test_what_came_to_a_record_is_added_to_its_copy(tmp_path: Path) -> None:
    here, there = (tmp_path / name / METRICS for name in ("run", "copies"))
    lines, other = (
        [f'{{"kind": "train", "step": {step}, "time": {step + began}}}\n'.encode() for step in range(4000)]
        for began in (100_000, 200_000)
    )
    for path in (here, there):
        path.parent.mkdir()
    here.write_bytes(b"".join(lines[:3000]))
    copy_record(here.parent, there.parent)
    first = there.stat().st_ino
    for kept in (len(b"".join(lines[:3000])), 100_001, 17):  # whole, and as kills left it
        os.truncate(there, kept)
        here.write_bytes(b"".join(lines))
        copy_record(here.parent, there.parent)
        assert there.read_bytes() == here.read_bytes() and there.stat().st_ino == first
    # Gone on with from step 2000: the same steps at other times, and one more.
    here.write_bytes(b"".join(lines[:2000] + other[2000:] + other[:1]))
    copy_record(here.parent, there.parent)
    assert there.read_bytes() == here.read_bytes()


def test_a_record_that_cannot_be_copied_is_told_with_its_path(topology: Topology, tmp_path: Path) -> None:
    with pytest.raises(Killed):
        train(topology, tmp_path / "run", copied(tmp_path / "copies"), die_before=5)
    (tmp_path / "copies" / "metrics.jsonl").unlink()
    (tmp_path / "copies" / "metrics.jsonl.partial").mkdir()
    with pytest.raises(UserError, match=r"copies/metrics\.jsonl: cannot be copied from .*Is a directory"):
        train(topology, tmp_path / "run", copied(tmp_path / "copies"))
