"""Stages are done once, redone when what they were made from changed, and resumed from what they left."""

import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from synpro_engine.config import UserError, partial_path
from synpro_engine.cycle import stages
from synpro_engine.cycle.stages import Stage, stage_times
from synpro_engine.dist import ParallelConfig, Topology, launched
from tests.cycle.running import run_stages


@pytest.fixture(scope="module")
def topology() -> Iterator[Topology]:
    with launched(ParallelConfig()) as here:
        yield here


class _Log:
    """Two stages, the second made from the first; remembers which ones worked."""

    def __init__(self) -> None:
        self.worked: list[str] = []

    def stages(self, first: str = "a", second: str = "b", interrupt: bool = False) -> list[Stage]:
        def write(into: Path, name: str, text: str) -> None:
            self.worked.append(name)
            trail = into / "trail"
            trail.write_text((trail.read_text() if trail.exists() else "") + text)
            if interrupt and name == "second":
                raise KeyboardInterrupt

        return [
            Stage("first", "one", lambda into, topology: write(into, "first", first), {"text": first}),
            Stage(
                "deep/second", "two", lambda into, topology: write(into, "second", second), {"text": second}, ("first",)
            ),
        ]


def test_finished_stages_are_not_repeated(topology: Topology, tmp_path: Path) -> None:
    log = _Log()
    for _ in range(2):
        run_stages(tmp_path, log.stages(), topology)
    assert log.worked == ["first", "second"]
    assert set(stage_times(tmp_path)) == {"first", "deep/second"}


def test_a_changed_setting_redoes_its_stage_and_what_follows(topology: Topology, tmp_path: Path) -> None:
    log = _Log()
    run_stages(tmp_path, log.stages(), topology)
    run_stages(tmp_path, log.stages(second="c"), topology, redo=True)
    assert log.worked == ["first", "second", "second"]
    run_stages(tmp_path, log.stages(first="z", second="c"), topology, redo=True)
    assert log.worked[3:] == ["first", "second"]
    assert (tmp_path / "deep" / "second" / "trail").read_text() == "c"


def test_a_finished_stage_is_not_replaced_because_what_it_was_made_from_was_deleted(
    topology: Topology, tmp_path: Path
) -> None:
    log = _Log()
    run_stages(tmp_path, log.stages(), topology)
    shutil.rmtree(tmp_path / "first")
    # As a training would: its log has times in it.
    other = [replace(log.stages()[0], work=lambda into, topology: (into / "trail").write_text("z")), log.stages()[1]]
    with pytest.raises(UserError, match=r"deep/second: was made from another first, which was missing.*--redo"):
        run_stages(tmp_path, other, topology)
    assert log.worked == ["first", "second"] and (tmp_path / "deep" / "second" / "trail").read_text() == "b"
    run_stages(tmp_path, other, topology, redo=True)
    assert log.worked == ["first", "second", "second"]
    with pytest.raises(UserError, match=r"deep/second: was made from more than it would be now \(first\); --redo"):
        run_stages(tmp_path, [other[0], replace(other[1], parents=())], topology)


def test_an_interrupted_stage_finds_what_it_left(topology: Topology, tmp_path: Path) -> None:
    log = _Log()
    with pytest.raises(KeyboardInterrupt):
        run_stages(tmp_path, log.stages(interrupt=True), topology)
    assert not (tmp_path / "deep" / "second").exists()
    run_stages(tmp_path, log.stages(), topology)
    assert (tmp_path / "deep" / "second" / "trail").read_text() == "bb"
    assert not partial_path(tmp_path / "deep" / "second").exists()
    assert sorted(path.name for path in (tmp_path / "deep").iterdir()) == ["second"]


def test_the_time_of_a_stage_is_that_of_all_its_attempts_however_they_ended(topology: Topology, tmp_path: Path) -> None:
    note = tmp_path / "long.partial.inputs.json"

    def work(into: Path, *, topology: Topology) -> None:
        attempt = len(list(into.iterdir()))
        (into / str(attempt)).touch()
        if attempt < 2:  # its last file is written 100 s behind its beginning
            written = note.stat().st_mtime + 100
            os.utime(into / str(attempt), (written, written))
            raise KeyboardInterrupt

    stage = Stage("long", "one", work, {"text": "a"})
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            run_stages(tmp_path, [stage], topology)
        for file in (tmp_path / "long.partial").iterdir():  # a day passes, in which nothing is spent
            os.utime(file, (file.stat().st_mtime - 86400,) * 2)
        os.utime(note, (note.stat().st_mtime - 86400,) * 2)
        os.utime(tmp_path / "long.partial", (note.stat().st_mtime,) * 2)
    begun = time.monotonic()
    run_stages(tmp_path, [stage], topology)
    assert 199.9 <= stage_times(tmp_path)["long"][0] <= 200.1 + time.monotonic() - begun


@pytest.mark.parametrize("before", ["publish", "_note"])
def test_a_stage_that_a_kill_left_at_its_very_end_has_its_time_and_leaves_nothing_else(
    topology: Topology, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: str
) -> None:
    log, calls = _Log(), iter(range(4))
    kept = getattr(stages, before)

    def killed(*arguments: object) -> object:
        # `_note` is asked for by the beginning of a stage, for its time, and by its very end.
        if before == "publish" or next(calls) == 2:
            raise KeyboardInterrupt
        return kept(*arguments)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(stages, before, killed)
        run_stages(tmp_path, log.stages()[:1], topology)
    run_stages(tmp_path, log.stages()[:1], topology)
    assert set(stage_times(tmp_path)) == {"first"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["first", "stages.jsonl"]


def test_work_left_from_other_inputs_is_not_used(topology: Topology, tmp_path: Path) -> None:
    log = _Log()
    with pytest.raises(KeyboardInterrupt):
        run_stages(tmp_path, log.stages(interrupt=True), topology)
    run_stages(tmp_path, log.stages(second="c"), topology)
    assert (tmp_path / "deep" / "second" / "trail").read_text() == "c"


def test_a_command_runs_its_own_stages_and_what_they_are_made_from(topology: Topology, tmp_path: Path) -> None:
    log = _Log()
    run_stages(tmp_path, log.stages(), topology, until="one")
    assert log.worked == ["first"]
    aside = Stage("aside", "three", lambda into, topology: None, {})
    run_stages(tmp_path, [aside, *log.stages()], topology, until="two")
    assert log.worked == ["first", "second"] and not (tmp_path / "aside").exists()
    with pytest.raises(UserError, match="no stage for `four`"):
        run_stages(tmp_path, log.stages(), topology, until="four")
