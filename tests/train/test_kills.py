"""Trainings of two ranks that are killed again and again, anywhere: nothing is lost or doubled, and the bits are equal.

KILLS=200 SEED=3 pytest -m slow tests/train/test_kills.py
"""

import os
import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from synpro_engine.train.metrics import METRICS
from tests.jobs import kill, made, started, steps_of

ROOT = Path(__file__).parents[2]
KILLS, SEED = int(os.environ.get("KILLS", "15")), int(os.environ.get("SEED", "0"))
STEPS = 40 * KILLS
COMMAND = (
    *(sys.executable, "-m", "synpro_engine", "launch", "--nproc-per-node", "2", "pretrain", "smoke"),
    *(f"pretrain.max_steps={STEPS}", "pretrain.checkpoint_every=4", "pretrain.eval_every=10", "pretrain.in_run=null"),
    *("pretrain.keep_checkpoints=2", "pretrain.plateau=null", "pretrain.tensorboard=false"),
)
LONGEST_LIFE_S = 2.0
"""From a life's first step on: some fifteen steps here, with a checkpoint at every fourth."""
START_S = 8.0
"""More than a start takes: some kills come before the first step."""


def begin(run: Path, settings: tuple[str, ...]) -> "subprocess.Popen[bytes]":
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'kernels'}", "OMP_NUM_THREADS": "1"}
    return started([*COMMAND, *settings, "--dir", run.name], run.parent, environment, f"{run.name}.log")


def wait_until(happened: Callable[[], bool], job: "subprocess.Popen[bytes]") -> None:
    end = time.monotonic() + 120
    while not happened() and job.poll() is None:
        assert time.monotonic() < end, "nothing happens"
        time.sleep(0.002)


def await_moment(moment: str, run: Path, job: "subprocess.Popen[bytes]", chance: random.Random) -> None:
    """While it starts, while it trains, or while it writes a checkpoint."""
    if moment == "start":
        time.sleep(chance.uniform(0.0, START_S))
        return
    partial = run / "pretrain.partial"

    def record() -> int:
        return (partial / METRICS).stat().st_size if (partial / METRICS).exists() else 0

    seen = record()
    wait_until(lambda: record() != seen, job)
    if moment == "save":
        wait_until(lambda: any((partial / "checkpoints").glob("*.partial")), job)
    else:
        time.sleep(chance.uniform(0.0, LONGEST_LIFE_S))


def kill_one_or_all(job: "subprocess.Popen[bytes]", whom: str, chance: random.Random) -> None:
    launcher = psutil.Process(job.pid)
    ranks = [one for one in launcher.children(recursive=True) if "pretrain" in one.cmdline()]
    if whom == "rank" and ranks:
        chance.choice(ranks).kill()
        # The launcher ends the others: a rank that waited for the dead one for ever would hold the machine.
        assert job.wait(timeout=60) != 0
        assert not any(one.is_running() for one in ranks)
    else:
        kill(launcher)
        job.wait(timeout=60)


@pytest.mark.slow
@pytest.mark.parametrize("saving", ["waits", "goes-on"])
def test_a_training_that_is_killed_anywhere_ends_with_the_bits_of_one_that_is_not(saving: str, tmp_path: Path) -> None:
    settings = (f"pretrain.async_checkpoints={str(saving == 'goes-on').lower()}",)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert begin(whole, settings).wait(timeout=600) == 0, (tmp_path / "whole.log").read_text()[-3000:]
    chance, lives = random.Random(SEED), []
    while len(lives) < KILLS:
        job = begin(killed, settings)
        moment, whom = chance.choice(["start", "training", "training", "save"]), chance.choice(["rank", "job"])
        await_moment(moment, killed, job, chance)
        assert job.poll() is None, (moment, lives, (tmp_path / "killed.log").read_text()[-3000:])
        kill_one_or_all(job, whom, chance)
        lives.append((moment, whom, len(steps_of(killed))))
    print(lives)
    assert begin(killed, settings).wait(timeout=600) == 0, (lives, (tmp_path / "killed.log").read_text()[-3000:])
    assert steps_of(killed) == list(range(1, STEPS + 1))
    assert made(killed) == made(whole), lives
