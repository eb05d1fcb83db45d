"""Copies of checkpoints in an object store: what they are, what stays of them, and that a run goes on from them."""

import shutil
from pathlib import Path

import pytest

from synpro_engine.config import UserError, read_manifest
from synpro_engine.config.artifact import write_manifest
from synpro_engine.dist import Topology
from synpro_engine.storage import faults
from synpro_engine.train.checkpoint_copies import StoredCopies
from synpro_engine.train.checkpoint_directory import CHECKPOINTS
from synpro_engine.train.config import TrainConfig
from tests.s3 import Bucket, Fault, Request, moto, s3  # noqa: F401
from tests.train.test_checkpoint_directory import saved
from tests.train.test_trainer import CONFIG, Killed, records, same, train


def copied(s3: Bucket, **settings: object) -> TrainConfig:  # noqa: F811
    update = {"checkpoint_copy": s3.address("copies"), "keep_checkpoints": 2, **settings}
    return CONFIG.model_copy(update=update)


def files(s3: Bucket, step: int) -> dict[str, bytes]:  # noqa: F811
    head = f"copies/step-{step:08d}/"
    return {key.removeprefix(head): s3.get(key) for key in s3.listed() if key.startswith(head)}


def files_here(run: Path, step: int) -> dict[str, bytes]:
    path = run / CHECKPOINTS / f"step-{step:08d}"
    return {name: (path / name).read_bytes() for name in ("manifest.json", *read_manifest(path).files)}


@pytest.mark.parametrize("background", [False, True])
def test_copies_are_the_checkpoints_and_are_kept_by_the_same_rule(
    topology: Topology,
    s3: Bucket,  # noqa: F811
    tmp_path: Path,
    background: bool,
) -> None:
    s3.put("copies/step-00000002/state/rest", b"of a copy that was killed")
    s3.put("copies/step-00000002/.begun", b'{"files": ["state/rest"]}')
    s3.put("copies/step-00000001/state/rest", b"of an older one")
    train(topology, tmp_path / "run", copied(s3, async_checkpoints=background))
    assert StoredCopies(s3.address("copies")).steps() == list(saved(tmp_path / "run" / CHECKPOINTS)) == [4, 6]
    for step in (4, 6):
        assert files(s3, step) == files_here(tmp_path / "run", step)
    assert not files(s3, 1) and not files(s3, 2)
    assert s3.get("copies/metrics.jsonl") == (tmp_path / "run" / "metrics.jsonl").read_bytes()


def test_a_run_whose_directory_is_lost_goes_on_from_the_copies_to_the_same_bits(
    topology: Topology,
    s3: Bucket,  # noqa: F811
    tmp_path: Path,
) -> None:
    whole = train(topology, tmp_path / "whole")
    with pytest.raises(Killed):
        train(topology, tmp_path / "run", copied(s3), die_before=5)
    shutil.rmtree(tmp_path / "run")
    # Over a connection that breaks.
    with s3.faults(lambda request: Fault(cut_after=50_000) if "/state/" in request.path else None):
        again = train(topology, tmp_path / "run", copied(s3))
    assert same(whole, again) and again.checkpoint.parent == tmp_path / "run" / CHECKPOINTS
    assert records(tmp_path / "run") == records(tmp_path / "whole")
    assert not (tmp_path / "run" / "brought").exists()


@pytest.mark.parametrize(("damaged", "goes_on_from"), [("run", 4), ("both", 2)])
def test_the_newest_sound_checkpoint_of_both_places_is_gone_on_from(
    topology: Topology,
    s3: Bucket,  # noqa: F811
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    damaged: str,
    goes_on_from: int,
) -> None:
    whole = train(topology, tmp_path / "whole")
    with pytest.raises(Killed):
        train(topology, tmp_path / "run", copied(s3), die_before=5)
    file = tmp_path / "run" / CHECKPOINTS / "step-00000004" / "state" / "__0_0.distcp"
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 0x55
    file.write_bytes(data)
    if damaged == "both":
        s3.put("copies/step-00000004/state/__0_0.distcp", bytes(data))
    assert same(whole, train(topology, tmp_path / "run", copied(s3)))
    told = capsys.readouterr().err
    assert f"going on from step {goes_on_from}" in told and "passed over: " in told
    assert records(tmp_path / "run") == records(tmp_path / "whole")
    assert StoredCopies(s3.address("copies")).steps() == [4, 6]
    for step in (4, 6):
        assert files(s3, step) == files_here(tmp_path / "run", step)


def test_copies_of_another_run_are_refused_and_not_brought_in(
    topology: Topology,
    s3: Bucket,  # noqa: F811
    tmp_path: Path,
) -> None:
    train(topology, tmp_path / "other", copied(s3, z_loss=0.5))
    with pytest.raises(UserError, match="step-00000006: belongs to a run of other settings: `z_loss`"):
        train(topology, tmp_path / "run", copied(s3))
    assert not (tmp_path / "run" / CHECKPOINTS).exists() and not (tmp_path / "run" / "brought").exists()


def test_a_damaged_copy_is_none_of_those_that_are_kept(s3: Bucket) -> None:  # noqa: F811
    for step in (1, 2, 4):
        s3.put(f"copies/step-{step:08d}/manifest.json", b"{}")
    copies = StoredCopies(s3.address("copies"))
    copies.distrust(4)
    copies.remove_older(1, lambda step: False)
    assert copies.steps() == [2, 4]


@pytest.mark.parametrize(
    ("fault", "told"),
    [(Fault(403, "AccessDenied"), "access denied"), (Fault(503, "SlowDown"), "no answer")],
)
def test_a_store_that_takes_no_copy_ends_the_job_with_its_address(
    topology: Topology,
    s3: Bucket,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    fault: Fault,
    told: str,
) -> None:
    monkeypatch.setattr(faults, "PATIENCE_S", 0.5)

    def refusing(request: Request) -> Fault | None:
        return fault if request.method in ("PUT", "POST") else None

    with s3.faults(refusing), pytest.raises(UserError, match=rf"{s3.name}/copies/step-00000002/\.begun: {told}"):
        train(topology, tmp_path / "run", copied(s3))


def test_the_record_may_grow_while_it_is_copied(topology: Topology, s3: Bucket, tmp_path: Path) -> None:  # noqa: F811
    train(topology, tmp_path / "run", CONFIG)
    record, copies = tmp_path / "run" / "metrics.jsonl", StoredCopies(s3.address("copies"))
    whole = record.read_bytes()

    def growing(request: Request) -> None:
        if request.method == "PUT" and request.path.endswith("metrics.jsonl"):
            with record.open("ab") as file:
                file.write(b'{"kind": "train"}\n')

    with s3.faults(growing):
        copies.put(tmp_path / "run" / CHECKPOINTS / "step-00000006", tmp_path / "run")
    assert s3.get("copies/metrics.jsonl") == whole and record.read_bytes() != whole


def test_a_record_larger_than_checkpoints_is_not_sent_anew_with_each(
    s3: Bucket,  # noqa: F811
    tmp_path: Path,
) -> None:
    run, path, sent = tmp_path / "run", tmp_path / "run" / CHECKPOINTS / "step-00000001", []
    path.mkdir(parents=True)
    (path / "data").write_bytes(b"d" * 5000)
    write_manifest(path, "checkpoint", {}, {}, None)
    copies, record = StoredCopies(s3.address("copies")), run / "metrics.jsonl"
    for size, last in ((450, False), (500, False), (600, False), (650, False), (700, False), (701, True)):
        record.write_bytes(b"r" * size)
        copies.put(path, run, last=last)
        sent.append(len(s3.get("copies/metrics.jsonl")))
    assert sent == [450, 500, 600, 600, 700, 701]


def test_halves_of_two_copies_are_not_brought_as_one(s3: Bucket, tmp_path: Path) -> None:  # noqa: F811
    copies = StoredCopies(s3.address("copies"))
    s3.put("copies/step-00000002/data", b"old")
    old = copies.at_hand(2, tmp_path)
    (old / "data").write_bytes(b"ol")  # killed on the way
    s3.put("copies/step-00000002/data", b"new")
    new = copies.at_hand(2, tmp_path)
    assert (new / "data").read_bytes() == b"new" and new.name == "step-00000002"


def test_a_store_that_is_busy_for_a_while_gets_its_copies(
    topology: Topology,
    s3: Bucket,  # noqa: F811
    tmp_path: Path,
) -> None:
    turn = iter(range(10**6))
    with s3.faults(lambda request: Fault(503, "SlowDown") if next(turn) % 7 == 0 else None):
        train(topology, tmp_path / "run", copied(s3))
    assert files(s3, 6) == files_here(tmp_path / "run", 6)
