"""Training that hangs ends with the rank that is behind, the line that it is stuck at, and every rank's stacks."""

import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from synpro_engine.data import Batch, EvalBatches
from synpro_engine.dist import ParallelConfig, launched
from synpro_engine.dist.hang import HangWatch, Place
from synpro_engine.dist.testing import ends, programs
from synpro_engine.model.build import build_model
from synpro_engine.train.metrics import METRICS
from synpro_engine.train.trainer import pretrain
from tests.train.test_trainer import CONFIG, SHAPE, held_out, loader_of

MINUTES = 0.05  # 3 s


def sleeps_for_ever() -> None:
    while True:
        time.sleep(0.1)


def hangs(directory: str) -> None:
    """Rank 1 of two is stuck in the third step."""
    with launched(ParallelConfig(hang_minutes=MINUTES)) as topology:
        loader = loader_of(topology)
        deal, batches = loader.next_batch, iter(range(2))

        def next_batch() -> Batch:
            batch = deal()
            if next(batches, None) is None and topology.rank == 1:
                sleeps_for_ever()
            return batch

        loader.next_batch = next_batch
        pretrain(build_model(SHAPE, topology), CONFIG, loader, Path(directory), held_out=held_out(topology))


def hangs_in_evaluation(directory: str) -> None:
    """Rank 1 of two is stuck in the third batch of an evaluation."""
    with launched(ParallelConfig(hang_minutes=MINUTES)) as topology:
        held = held_out(topology)

        def batches() -> Iterator[Batch]:
            for number, batch in enumerate(held["validation"]):
                trained = '"train"' in (Path(directory) / METRICS).read_text()
                if trained and number == 2 and topology.rank == 1:
                    sleeps_for_ever()
                yield batch

        sets = {"reference": held["reference"], "validation": EvalBatches(batches)}
        pretrain(build_model(SHAPE, topology), CONFIG, loader_of(topology), Path(directory), held_out=sets)


def test_a_rank_that_is_stuck_in_an_evaluation_is_named_too(tmp_path: Path) -> None:
    log, run = tmp_path / "log", tmp_path / "run"
    with programs(hangs_in_evaluation, 2, log, directory=str(run)) as processes:
        found = ends(processes, log, timeout_s=200)
    assert [end.code for end in found] == [134, 134], found
    [line] = [line for end in found for line in end.stderr.splitlines() if line.startswith("error: ")]
    assert "rank 1 on " in line and "is in the evaluation behind step 2, on validation, at sleeps_for_ever" in line, (
        line
    )


def test_the_rank_that_is_stuck_is_named_with_its_step_and_line(tmp_path: Path) -> None:
    log, run = tmp_path / "log", tmp_path / "run"
    with programs(hangs, 2, log, directory=str(run)) as processes:
        found = ends(processes, log, timeout_s=200)
    assert [end.code for end in found] == [134, 134], found
    [line] = [line for end in found for line in end.stderr.splitlines() if line.startswith("error: ")]
    assert "(`parallel.hang_minutes`): rank 1 on " in line
    assert "is in step 3: reading its batch, at sleeps_for_ever (test_hang.py:" in line, line
    assert line.endswith(f"and the others wait for it; the stacks of all ranks are in {run / 'stacks'}")
    stacks = [(run / "stacks" / f"rank-{rank}.txt").read_text() for rank in range(2)]
    assert "sleeps_for_ever" in stacks[1] and "sleeps_for_ever" not in stacks[0]
    assert "in next_batch" not in stacks[0] and "in step" in stacks[0]


def place_of(parts: int, *, waits: bool) -> Place:
    return Place(host="a", parts=parts, part=f"part {parts}", line="f (f.py:1)", waits=waits)


@pytest.mark.parametrize(
    ("places", "named"),
    [
        ({0: place_of(7, waits=True), 1: place_of(6, waits=True)}, "rank 1 on a is in part 6"),
        ({0: place_of(7, waits=True), 1: place_of(7, waits=False)}, "rank 1 on a is in part 7"),
        ({0: place_of(7, waits=True), 1: place_of(7, waits=True)}, "2 ranks are as far as each other; rank 0 on a"),
        ({0: place_of(7, waits=True)}, "rank 1 does not answer"),
    ],
)
def test_the_rank_that_has_come_least_far_is_behind(places: dict[int, Place], named: str) -> None:
    assert named in HangWatch().verdict(places, 2)


def test_a_part_may_take_ten_times_as_long_as_the_longest_one_and_rest_as_long_as_it_likes() -> None:
    hang = HangWatch(0.01)
    for _ in range(4):  # such as evaluations before the first step, and the step itself
        hang.begin("of the start")
        time.sleep(0.1)
        assert not hang.hangs
    hang.stepped = True
    hang.begin("another")
    time.sleep(0.3)
    assert not hang.hangs  # three times the longest, and thirty times the setting
    time.sleep(0.9)
    assert hang.hangs
    hang.goes_on()
    assert not hang.hangs
    hang.rest()
    hang.goes_on()
    assert not hang.hangs


@pytest.mark.parametrize("part", ["step", "evaluation"])
def test_training_that_fails_is_watched_no_longer(part: str, tmp_path: Path) -> None:
    """What goes on behind it in the same process, as a sweep does, may take as long as it likes."""

    def fails() -> Iterator[Batch]:
        raise RuntimeError(part)
        yield  # makes it a generator

    with launched(ParallelConfig()) as topology:
        loader, sets = loader_of(topology), dict[str, Iterable[Batch]](held_out(topology))
        if part == "step":
            loader.next_batch = lambda: next(fails())
        else:
            sets["validation"] = EvalBatches(fails)
        with pytest.raises(RuntimeError, match=part):
            pretrain(build_model(SHAPE, topology), CONFIG, loader, tmp_path, held_out=sets)
        assert topology.watch.hang.minutes == 0
