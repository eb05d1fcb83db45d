"""Jobs of several processes that are started as a user starts them, watched from outside, killed and compared."""

import hashlib
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

from synpro_engine.train.metrics import METRICS, read_metrics

CLOCKS = ("time", "tokens_per_s", "mfu")


def started(words: Sequence[str], where: Path, environment: Mapping[str, str], log: str) -> "subprocess.Popen[bytes]":
    """A program in `where`, its words at the end of the file `log` there."""
    with (where / log).open("ab") as file:
        return subprocess.Popen(words, cwd=where, env=dict(environment), stdout=file, stderr=file)


def steps_of(run: Path) -> list[int]:
    """The pretraining steps in a run's record, which is begun or done."""
    places = (run / "pretrain" / METRICS, run / "pretrain.partial" / METRICS)
    path = next((place for place in places if place.exists()), places[0])
    return [record["step"] for record in read_metrics(path) if record["kind"] == "train"]


def wait_for(happened: Callable[[], bool], processes: Sequence["subprocess.Popen[bytes]"], log: Path) -> None:
    """Until it happened; AssertionError after five minutes, or where one of the processes ends before."""
    end = time.monotonic() + 300
    while not happened():
        assert time.monotonic() < end and all(p.poll() is None for p in processes), log.read_text()[-3000:]
        time.sleep(0.05)


def made(run: Path) -> dict[str, Any]:
    """All checkpoints' tensors and every record of a finished pretraining, without clocks and what is of them alone."""
    files = sorted((run / "pretrain" / "checkpoints").rglob("state/*"))
    found: dict[str, Any] = {
        str(file.relative_to(run)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files
    }
    found[METRICS] = [
        {key: value for key, value in record.items() if key not in CLOCKS}
        for record in read_metrics(run / "pretrain" / METRICS)
        if record["kind"] != "ranks"
    ]
    return found


def kill(process: psutil.Process) -> None:
    """It and all that it started, at once."""
    for one in (*process.children(recursive=True), process):
        one.kill()
