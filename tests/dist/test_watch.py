"""Long work of one rank, and faults of one rank: the others wait as long as it lives, and not a moment longer."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from synpro_engine.config import UserError
from synpro_engine.dist import ParallelConfig, Stopped, barrier, gather_objects, launched, on_main
from synpro_engine.dist.testing import RankEnd, ends, programs, run_ranks
from synpro_engine.model.build import build_model
from synpro_engine.model.config import ModelConfig
from synpro_engine.sampler import Sampler, SamplingConfig
from synpro_engine.train.engine import Engine
from synpro_engine.train.losses import LanguageModelLoss
from synpro_engine.train.optimizer_config import OptimizerConfig

BRIEF = ParallelConfig(timeout_minutes=0.1, silence_minutes=0.1)  # 6 s
SHAPE = ModelConfig(layers=1, d_model=16, heads=2, kv_heads=1, ffn=24, vocab_size=32, seq_len=16)


def _works_long(seconds: float) -> list[Any]:
    with launched(BRIEF) as topology:
        first = on_main(topology, lambda: time.sleep(seconds) or os.getpid(), label="long work")
        if topology.rank == 1:
            time.sleep(seconds)  # its share took longer than the other rank's
        barrier(topology)
        return [first, on_main(topology, lambda: None), topology.rank]


def test_work_of_one_rank_may_take_longer_than_a_collective() -> None:
    found = run_ranks(_works_long, 2, seconds=8.0)
    assert found[0][0] == found[1][0] and [rank[1:] for rank in found] == [[None, 0], [None, 1]]


def _fails(place: str) -> None:
    """One rank of two fails while the other one waits, or soon will, in a collective of half an hour."""
    minutes = 0.1 if place == "late" else 30
    with launched(ParallelConfig(silence_minutes=0.1, timeout_minutes=minutes)) as topology:
        barrier(topology)  # a rank that is still joining would notice by other means
        if place == "on_main":
            on_main(topology, lambda: 1 // 0)
        elif place == "training step":
            _train(topology)
        elif place == "rollouts":
            _sample(topology)
        elif place == "late" and topology.rank == 1:
            time.sleep(9)
        elif place == "data" and topology.rank == 1:
            raise ValueError("document 7 is no text\nand more")
        elif place == "a user's fault" and topology.rank == 1:
            raise UserError("shard.bin: cut off at byte 9")
        elif place == "a full disk" and topology.rank == 1:
            Path("/dev/full").write_text("a step")
        elif place == "a setting":
            raise UserError("`tune.rephrase.steps`: is not what it should be")
        elif place == "killed" and topology.rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        elif place == "rank 0 killed while it works":
            on_main(topology, lambda: time.sleep(1.0) or os.kill(os.getpid(), signal.SIGKILL))
        elif place == "rank 0 frozen, with the store":
            on_main(topology, lambda: os.kill(os.getpid(), signal.SIGSTOP))
        elif place == "rank 1 frozen":
            if topology.rank == 1:
                os.kill(os.getpid(), signal.SIGSTOP)
            barrier(topology)
        elif place == "after the other's last work":
            if topology.rank == 1:
                return
            time.sleep(1.0)
            raise ValueError("the last file is cut off")
        elif place == "every rank":
            on_main(topology, lambda: Path("/nowhere/file").read_text())
        gather_objects(topology.dp, topology.rank)


def _train(topology: Any) -> None:
    class Loss(LanguageModelLoss):
        def __call__(self, *arguments: Any) -> Any:
            if topology.rank == 1:
                raise FloatingPointError("the loss is not finite")
            return super().__call__(*arguments)

    from synpro_engine.data import Batch

    engine = Engine(build_model(SHAPE, topology, seed=1), OptimizerConfig(lr=1e-3))
    tokens_BS = torch.ones(2, 8, dtype=torch.int64)
    engine.step([Batch(tokens_BS=tokens_BS, labels_BS=tokens_BS)], Loss(), denominator=32.0)


def _sample(topology: Any) -> None:
    model = build_model(SHAPE, topology, seed=1)
    if topology.rank == 1:
        for parameter in model.parameters():
            torch.nn.init.constant_(parameter, float("nan"))
    Sampler(model).generate(
        [[1, 2]], group_size=2, sampling=SamplingConfig(max_new_tokens=4), stop_ids=frozenset(), seeds=[1]
    )


def _ended(tmp_path: Path, place: str, *, but: int | None = None) -> tuple[list[RankEnd], float]:
    """How the ranks end, and how long after the first one the last one does; `but` will not end by itself."""
    log = tmp_path / "log"
    with programs(_fails, 2, log, place=place) as processes:
        while all(process.exitcode is None for process in processes):
            time.sleep(0.05)
        first = time.monotonic()
        if but is not None:
            processes[but].kill()
        return ends(processes, log, timeout_s=120), time.monotonic() - first


@pytest.mark.parametrize(
    ("place", "rank", "told"),
    [
        ("on_main", 0, "ZeroDivisionError: integer division or modulo by zero"),
        ("training step", 1, "FloatingPointError: the loss is not finite"),
        ("rollouts", 1, "FloatingPointError: the model's logits are not finite"),
        ("data", 1, "ValueError: document 7 is no text"),
        ("a user's fault", 1, "shard.bin: cut off at byte 9"),
        ("a full disk", 1, "[Errno 28] No space left on device"),
        ("after the other's last work", 0, "ValueError: the last file is cut off"),
    ],
)
def test_a_fault_of_one_rank_ends_all_with_its_words_last(tmp_path: Path, place: str, rank: int, told: str) -> None:
    found, seconds = _ended(tmp_path, place)
    assert seconds < 20
    last = found[0].stderr.strip().splitlines()[-1]
    assert last.startswith(f"error: rank {rank} on ") and f" failed: {told}" in last, found[0].stderr
    mendable = place in ("a user's fault", "a full disk")
    assert [end.code for end in found] == ([2, 2] if mendable else [1, 1])
    assert sum(end.stderr.count("Traceback") for end in found) == (not mendable)
    assert sum(end.stderr.count("error: rank") for end in found) == 1


def test_a_users_fault_that_every_rank_finds_is_told_of_none(tmp_path: Path) -> None:
    found, seconds = _ended(tmp_path, "a setting")
    assert seconds < 20 and [end.code for end in found] == [2, 2]
    told = [line for end in found for line in end.stderr.splitlines() if "tune.rephrase" in line]
    assert told == ["error: `tune.rephrase.steps`: is not what it should be"]


def test_what_every_rank_is_told_ends_the_job_in_order(tmp_path: Path) -> None:
    found, _ = _ended(tmp_path, "every rank")
    assert all("SharedTransientError: /nowhere/file: No such file or directory" in end.stderr for end in found)


@pytest.mark.parametrize(
    ("place", "told"),
    [
        ("killed", "rank 0 on .* failed: another rank is gone"),
        ("rank 0 killed while it works", "rank 1 on .* failed: the job's store is gone"),
    ],
)
def test_a_killed_rank_ends_the_others(tmp_path: Path, place: str, told: str) -> None:
    found, seconds = _ended(tmp_path, place)
    survivor = found[0] if place == "killed" else found[1]
    assert seconds < 20 and survivor.code == 1
    assert re.search(told, survivor.stderr), survivor.stderr


@pytest.mark.parametrize(
    ("place", "frozen", "told"),
    [
        ("rank 0 frozen, with the store", 0, "the job's store is gone.*it has not answered for 6 s"),
        ("rank 1 frozen", 1, "rank 1 has shown no sign of life for [67] s"),
    ],
)
def test_a_frozen_rank_is_given_up_after_its_silence(tmp_path: Path, place: str, frozen: int, told: str) -> None:
    begun = time.monotonic()
    found, _ = _ended(tmp_path, place, but=frozen)
    assert re.search(f"rank {1 - frozen} on \\S+ failed: {told}", found[1 - frozen].stderr), found
    assert time.monotonic() - begun < 120


def test_a_collective_that_takes_too_long_names_the_setting(tmp_path: Path) -> None:
    found, _ = _ended(tmp_path, "late")
    assert (
        "rank 0 on" in found[0].stderr and "a collective took longer than `parallel.timeout_minutes`" in found[0].stderr
    )


def _is_stopped(tmp_path: str, work: bool) -> None:
    with launched(ParallelConfig()) as topology:
        (Path(tmp_path) / f"ready-{topology.rank}").write_text(str(os.getpid()))
        if work:
            on_main(topology, lambda: time.sleep(300), label="long work")
        while not topology.watch.wish.signal:
            time.sleep(0.01)
        raise Stopped(f"by {topology.watch.wish.signal}")


@pytest.mark.parametrize("work", [False, True], ids=["between steps", "in long work of rank 0"])
def test_a_signal_to_one_rank_reaches_all(tmp_path: Path, work: bool) -> None:
    log = tmp_path / "log"
    with programs(_is_stopped, 2, log, tmp_path=str(tmp_path), work=work) as processes:
        while not all((tmp_path / f"ready-{rank}").exists() for rank in range(2)):
            time.sleep(0.05)
        time.sleep(1.0)
        os.kill(processes[1].pid, signal.SIGUSR1)
        found = ends(processes, log, timeout_s=60)
    assert [end.code for end in found] == [75, 75]
    assert all("stopped: " in end.stderr and "SIGUSR1" in end.stderr for end in found)


def _waits_for_rank_0(tmp_path: str) -> None:
    with launched(ParallelConfig()) as topology:
        (Path(tmp_path) / f"ready-{topology.rank}").write_text(str(os.getpid()))
        if topology.rank == 0:  # in Python, where a signal is heard at once
            end = time.monotonic() + 4.0
            while time.monotonic() < end:
                time.sleep(0.01)
        barrier(topology)
        raise Stopped(f"by {topology.watch.wish.signal}")


def test_the_first_interrupt_is_a_wish_on_ranks_too_that_hear_it_late_in_a_collective(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with programs(_waits_for_rank_0, 2, log, tmp_path=str(tmp_path)) as processes:
        while not all((tmp_path / f"ready-{rank}").exists() for rank in range(2)):
            time.sleep(0.05)
        time.sleep(0.5)
        for process in processes:
            os.kill(process.pid, signal.SIGINT)
        found = ends(processes, log, timeout_s=60)
    assert [end.code for end in found] == [75, 75], found


def test_the_second_interrupt_ends_a_process_and_one_behind_another_ranks_wish_is_the_first() -> None:
    code = "import os, signal, time; from synpro_engine.dist.signals import StopWish; wish = StopWish(tell=False);"
    code += (
        "wish.listen(); wish.wish('SIGTERM'); press = lambda: (os.kill(os.getpid(), signal.SIGINT), time.sleep(1.2));"
    )
    assert subprocess.run([sys.executable, "-c", code + "press()"]).returncode == 0
    assert subprocess.run([sys.executable, "-c", code + "press(); press()"]).returncode == -signal.SIGINT
