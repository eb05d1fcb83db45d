"""Checkpoints that are written while training goes on: the same files, and no fault or kill on the way goes unseen."""

import hashlib
import os
import resource
import shutil
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from synpro_engine.config import UserError
from synpro_engine.dist import ParallelConfig, Stopped, Topology, launched
from synpro_engine.dist.testing import RankEnd, ends, programs
from synpro_engine.train.checkpoint import CheckpointDraft, Written
from synpro_engine.train.checkpoint_directory import CHECKPOINTS
from synpro_engine.train.config import TrainConfig
from tests.train.test_trainer import CONFIG, Killed, records, same, train

ASYNC = CONFIG.model_copy(update={"async_checkpoints": True})
PATIENCE_S = 60.0


def tensors(directory: Path) -> dict[str, str]:
    """Hashes of the tensors of all checkpoints, and of their indices."""
    found = sorted((directory / CHECKPOINTS).glob("step-*/state/*")) + sorted(
        (directory / CHECKPOINTS).glob("step-*/state/.metadata")
    )
    return {str(file.relative_to(directory)): hashlib.sha256(file.read_bytes()).hexdigest() for file in found}


def saved(directory: Path) -> list[str]:
    return sorted(path.name for path in (directory / CHECKPOINTS).glob("step-*") if path.suffix == "")


def writing(monkeypatch: pytest.MonkeyPatch, before: Callable[[CheckpointDraft], None]) -> None:
    """Have `before` called where a draft is about to be written, in the thread that writes it."""
    write = CheckpointDraft.write

    def call(draft: CheckpointDraft) -> Written:
        before(draft)
        return write(draft)

    monkeypatch.setattr(CheckpointDraft, "write", call)


def test_files_are_those_of_a_run_that_waits_though_training_goes_on(
    topology: Topology, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waited = train(topology, tmp_path / "waits")
    made, steps = threading.Event(), run_steps(monkeypatch)

    def after_the_next_step(draft: CheckpointDraft) -> None:
        if draft.path.name == "step-00000002":
            assert made.wait(PATIENCE_S)  # the step behind it is made while this one is not yet written

    steps.append(lambda step: made.set() if step == 3 else None)
    writing(monkeypatch, after_the_next_step)
    assert same(waited, train(topology, tmp_path / "goes-on", ASYNC))
    assert records(tmp_path / "goes-on") == records(tmp_path / "waits")
    assert tensors(tmp_path / "goes-on") == tensors(tmp_path / "waits")
    assert saved(tmp_path / "goes-on") == ["step-00000002", "step-00000004", "step-00000006"]


def run_steps(monkeypatch: pytest.MonkeyPatch) -> list[Callable[[int], Any]]:
    """Callables that are told of each step after it is made."""
    from synpro_engine.train.run import PretrainRun

    made, told = PretrainRun.step, []

    def step(run: PretrainRun) -> Any:
        result = made(run)
        for each in told:
            each(result.step)
        return result

    monkeypatch.setattr(PretrainRun, "step", step)
    return told


def test_a_second_checkpoint_waits_for_the_first_and_says_so(
    topology: Topology, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    told, in_hand = threading.Event(), []
    from synpro_engine.train import checkpoint_saver

    say = checkpoint_saver.say
    monkeypatch.setattr(checkpoint_saver, "say", lambda *what: (say(*what), told.set()))

    def slowly(draft: CheckpointDraft) -> None:
        in_hand.append(len(list(draft.path.parent.glob("*.partial"))))
        assert draft.path.name != "step-00000002" or told.wait(PATIENCE_S)

    writing(monkeypatch, slowly)
    train(topology, tmp_path, ASYNC)
    assert in_hand == [1, 1, 1]  # never two
    assert "step-00000004: waits until " in capsys.readouterr().err
    assert saved(tmp_path) == ["step-00000002", "step-00000004", "step-00000006"]


@pytest.mark.parametrize("left_by", ["exception", "signal"])
def test_however_training_is_left_the_checkpoint_in_hand_is_finished(
    topology: Topology, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, left_by: str
) -> None:
    left, whole = threading.Event(), train(topology, tmp_path / "whole")
    writing(monkeypatch, lambda draft: assert_waited(left) if draft.path.name == "step-00000004" else None)
    if left_by == "signal":
        # The step in hand is the checkpoint's own: what is being written is what was asked for.
        steps = run_steps(monkeypatch)
        steps.append(lambda step: os.kill(os.getpid(), signal.SIGTERM) if step == 3 else None)
    threading.Timer(2.0, left.set).start()
    with pytest.raises(Killed if left_by == "exception" else Stopped):
        train(topology, tmp_path / "left", ASYNC, die_before=4 if left_by == "exception" else None)
    topology.watch.wish.signal = None
    assert left.is_set() and saved(tmp_path / "left") == ["step-00000002", "step-00000004"]
    assert same(whole, train(topology, tmp_path / "left", ASYNC))
    assert records(tmp_path / "left") == records(tmp_path / "whole")


def assert_waited(event: threading.Event) -> None:
    assert event.wait(PATIENCE_S)


def test_a_directory_that_is_gone_is_told_at_the_next_step(
    topology: Topology, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = threading.Event()

    def remove(draft: CheckpointDraft) -> None:
        if draft.path.name == "step-00000004":
            shutil.rmtree(tmp_path / CHECKPOINTS / "step-00000004.partial")
            gone.set()

    steps = run_steps(monkeypatch)
    steps.append(lambda step: assert_waited(gone) if step == 5 else None)
    writing(monkeypatch, remove)
    with pytest.raises(UserError, match=r"step-00000004\.partial: cannot be written \(.*No such file"):
        train(topology, tmp_path, ASYNC)
    assert saved(tmp_path) == ["step-00000002"]
    monkeypatch.undo()
    train(topology, tmp_path, ASYNC)
    assert saved(tmp_path) == ["step-00000002", "step-00000004", "step-00000006"]


LAYOUTS = {"1 rank": (1, ParallelConfig()), "DP2": (2, ParallelConfig()), "TP2": (2, ParallelConfig(tp=2))}


def trains(directory: str, config: TrainConfig, parallel: ParallelConfig, fault: str | None = None) -> None:
    """A run, on the last rank of which something happens while the checkpoint of step 4 is written."""
    with launched(parallel) as topology:
        write = CheckpointDraft.write

        def call(self: CheckpointDraft) -> Written:
            if fault is not None and topology.rank == topology.world_size - 1 and self.path.name == "step-00000004":
                if fault == "killed":  # when its files are there, and before anybody knows of them
                    write(self)
                    os.kill(os.getpid(), signal.SIGKILL)
                resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))  # the disk is full
            return write(self)

        CheckpointDraft.write = call
        train(topology, Path(directory), config)


def run(log: Path, directory: Path, config: TrainConfig, layout: str, fault: str | None = None) -> list[RankEnd]:
    world_size, parallel = LAYOUTS[layout]
    settings = {"directory": str(directory), "config": config, "parallel": parallel, "fault": fault}
    with programs(trains, world_size, log, **settings) as processes:
        return ends(processes, log)


@pytest.mark.parametrize(
    ("fault", "layout"),
    [
        ("full disk", "TP2"),
        *(pytest.param("killed", layout, marks=pytest.mark.slow) for layout in LAYOUTS),
        *(pytest.param("full disk", layout, marks=pytest.mark.slow) for layout in ("1 rank", "DP2")),
    ],
)
def test_a_save_that_fails_leaves_the_one_before_and_the_run_goes_on_to_the_same_bits(
    tmp_path: Path, fault: str, layout: str
) -> None:
    assert [end.code for end in run(tmp_path / "a", tmp_path / "whole", CONFIG, layout)] == [0] * LAYOUTS[layout][0]
    failed = run(tmp_path / "b", tmp_path / "failed", ASYNC, layout, fault)
    assert saved(tmp_path / "failed") == ["step-00000002"]
    if fault == "killed":
        assert failed[-1].code == -signal.SIGKILL and all(end.code for end in failed)
    elif len(failed) == 1:
        assert "step-00000004.partial: cannot be written (" in failed[0].stderr, failed
    else:
        assert [end.code for end in failed] == [2, 2], failed
        [line] = [line for end in failed for line in end.stderr.splitlines() if line.startswith("error: ")]
        assert line.startswith("error: rank 1 on ") and "step-00000004.partial: cannot be written (" in line, line
    again = run(tmp_path / "c", tmp_path / "failed", ASYNC, layout)
    assert [end.code for end in again] == [0] * len(again), again
    assert tensors(tmp_path / "failed") == tensors(tmp_path / "whole")
    assert records(tmp_path / "failed") == records(tmp_path / "whole")
