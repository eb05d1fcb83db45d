"""A job that is asked to stop finishes its step, saves, and goes on to the artifacts of one that was never asked."""

import hashlib
import os
import runpy
import signal
from pathlib import Path
from typing import Any

import pytest

from synpro_engine.cycle.steps.in_run import InRunScores
from synpro_engine.dist import ParallelConfig, Topology, launched
from synpro_engine.dist.testing import RankEnd, ends, programs
from synpro_engine.model.build import build_model
from synpro_engine.train.metrics import read_metrics
from synpro_engine.train.trainer import pretrain

_TESTS = Path(__file__).parents[1]
_CLOCKS = ("time", "seconds", "direction_seconds", "tokens_per_s", "mfu")


def _pretrain(topology: Topology, directory: Path, stop: int | None) -> None:
    """Pretraining that scores its documents along a direction made at step 2 and renewed at step 6."""
    toy = runpy.run_path(str(_TESTS / "cycle" / "test_in_run.py"))
    loader, watch = toy["loader_of"](topology, toy["corpus"](1)), toy["WATCH"]
    deal, dealt = loader.next_batch, 0

    def next_batch() -> Any:
        nonlocal dealt
        dealt += 1
        if dealt == stop:
            os.kill(os.getpid(), signal.SIGTERM)
        return deal()

    loader.next_batch = next_batch
    watcher = InRunScores(watch, directory / "scores.jsonl", {"reference": toy["corpus"](2)}, topology)
    pretrain(build_model(toy["SHAPE"], topology), toy["TRAIN"], loader, directory, watcher=watcher)


def _tune(topology: Topology, directory: Path, stop: int | None) -> None:
    toy = runpy.run_path(str(_TESTS / "rl" / "toy.py"))
    config = toy["CONFIG"].model_copy(update={"steps": 5, "checkpoint_every": 0})
    toy["run"](topology, directory, config, kill_after=stop, signal=signal.SIGUSR1)


def _generate(topology: Topology, directory: Path, stop: int | None) -> None:
    asked = None if stop is None else (signal.SIGINT, stop)
    runpy.run_path(str(_TESTS / "synth" / "generation_job.py"))["generate"](
        directory / "corpus", topology, 0.3, stop=asked
    )


_JOBS = {"pretrain": _pretrain, "tune": _tune, "generate": _generate}


def _job(kind: str, directory: str, stop: int | None = None) -> None:
    """One job; its last rank is sent a signal on the way."""
    with launched(ParallelConfig()) as topology:
        last = topology.rank == topology.world_size - 1
        _JOBS[kind](topology, Path(directory), stop if last else None)


def _run(world_size: int, log: Path, **settings: Any) -> list[RankEnd]:
    with programs(_job, world_size, log, **settings) as processes:
        return ends(processes, log)


def _made(directory: Path) -> dict[str, Any]:
    """All that a job left, but its clocks: every checkpoint, records, texts."""
    found: dict[str, Any] = {}
    for path in sorted(directory.rglob("*")):
        name = str(path.relative_to(directory))
        if path.parent.name == "state":  # a checkpoint's tensors: equal states, equal files
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
        elif path.name == "metrics.jsonl":
            found[name] = [
                {key: value for key, value in record.items() if not key.startswith(_CLOCKS)}
                for record in read_metrics(path)
            ]
        elif path.name in ("scores.jsonl", "yield.json") or path.name.endswith(".jsonl.zst"):
            found[name] = path.read_bytes()
        elif path.is_dir():
            found[name] = "directory"
    return found


@pytest.mark.parametrize("world_size", [pytest.param(1, marks=pytest.mark.slow), 2])
@pytest.mark.parametrize(
    ("kind", "stop", "told"),
    [
        ("pretrain", 5, "stopped after step 5, which is saved"),
        ("tune", 2, "stopped after step 3 of 5, which is saved"),
        ("generate", 1, "batches to go; those that are done are kept"),
    ],
)
def test_a_stopped_job_goes_on_to_what_it_would_have_made(
    tmp_path: Path, kind: str, stop: int, told: str, world_size: int
) -> None:
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    for directory in (whole, stopped):
        directory.mkdir()
    assert [end.code for end in _run(world_size, tmp_path / "a", kind=kind, directory=str(whole))] == [0] * world_size
    ended = _run(world_size, tmp_path / "b", kind=kind, directory=str(stopped), stop=stop)
    assert [end.code for end in ended] == [75] * world_size, [end.stderr[-800:] for end in ended]
    assert all(told in end.stderr for end in ended), ended
    again = _run(world_size, tmp_path / "c", kind=kind, directory=str(stopped))
    assert [end.code for end in again] == [0] * world_size, [end.stderr[-800:] for end in again]
    assert _made(stopped) == _made(whole)
