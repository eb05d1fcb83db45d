"""A sweep whose workers are killed, stopped, or several: no trial is lost or made twice, and the bits are equal."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from synpro_engine.train.metrics import METRICS, read_metrics
from tests.jobs import kill, made, started, steps_of, wait_for

ROOT = Path(__file__).parents[2]
STEPS = 60
COMMAND = (
    *(sys.executable, "-m", "synpro_engine", "sweep", "smoke", f"pretrain.max_steps={STEPS}", "pretrain.eval_every=20"),
    *("pretrain.checkpoint_every=5", "pretrain.in_run=null", "pretrain.plateau=null", "pretrain.tensorboard=false"),
    *("corpus.max_train_tokens=6000", "corpus.max_held_out_tokens=1500", "--pruner", "none", "--sampler", "grid"),
)


def begin(directory: Path, rates: str, log: str) -> "subprocess.Popen[bytes]":
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'kernels'}", "OMP_NUM_THREADS": "1"}
    words = [*COMMAND, "--over", f"pretrain.optimizer.lr={rates}", "--dir", directory.name]
    return started(words, directory.parent, environment, log)


def finish(process: "subprocess.Popen[bytes]", log: Path) -> None:
    assert process.wait(timeout=900) == 0, log.read_text()[-3000:]


def records(directory: Path) -> list[dict[str, Any]]:
    lines = (directory / "trials.jsonl").read_text().splitlines()
    return [{key: value for key, value in json.loads(line).items() if key != "seconds"} for line in lines]


@pytest.mark.slow
def test_a_sweep_that_is_killed_and_stopped_on_the_way_comes_to_the_bits_of_one_that_is_not(tmp_path: Path) -> None:
    whole, broken, log = tmp_path / "whole", tmp_path / "broken", tmp_path / "log"
    rates = "1e-3,2e-3,3e-3"
    finish(begin(whole, rates, "log"), log)
    first, second, third = (broken / "trials" / f"{number:03d}" for number in range(3))

    for place, ready in (
        (first, lambda: len(steps_of(first)) > 12),  # in the middle of a training
        (second, lambda: second.exists()),  # begun in the storage, and nothing made
    ):
        process = begin(broken, rates, "log")
        wait_for(ready, [process], log)
        kill(psutil.Process(process.pid))
        process.wait(timeout=60)
        assert not (place / "pretrain").exists()
    process = begin(broken, rates, "log")
    wait_for(lambda: len(steps_of(third)) > 3, [process], log)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 75, log.read_text()[-2000:]
    assert [record["state"] for record in records(broken)] == ["complete", "complete", "running"]
    finish(begin(broken, rates, "log"), log)

    assert records(broken) == records(whole)
    for run in (first, second, third):
        assert made(run) == made(whole / "trials" / run.name)
    told = log.read_text()
    assert len(re.findall(r"trials/\d+/pretrain\.partial: going on from step", told)) >= 2, told[-3000:]


@pytest.mark.slow
@pytest.mark.parametrize("workers", [2, 4])
def test_several_workers_share_a_sweep_and_none_makes_what_another_one_makes(tmp_path: Path, workers: int) -> None:
    directory, rates = tmp_path / "shared", ",".join(f"{number}e-3" for number in range(1, 9))
    logs = [f"log-{number}" for number in range(workers)]
    for process, log in [(begin(directory, rates, log), tmp_path / log) for log in logs]:
        finish(process, log)
    found = records(directory)
    assert [record["trial"] for record in found] == list(range(8))
    assert {record["state"] for record in found} == {"complete"}
    for record in found:
        run = directory / "trials" / f"{record['trial']:03d}"
        assert steps_of(run) == list(range(1, STEPS + 1))
        evaluated = [one["step"] for one in read_metrics(run / "pretrain" / METRICS) if one["kind"] == "eval"]
        assert evaluated == [0, 20, 40, 60]
    ended = [re.findall(r"\[trial (\d+)\] complete", (tmp_path / log).read_text()) for log in logs]
    assert sorted(number for numbers in ended for number in numbers) == [f"{number:03d}" for number in range(8)]
    assert all(ended), "each worker had some"
