"""`synpro launch`: real ranks; one line for what failed, printed last, and exit codes that pass through."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from synpro_engine.config import read_manifest
from synpro_engine.config.artifact import MANIFEST

_ROOT = Path(__file__).parents[2]


@contextmanager
def _launched(*arguments: str) -> Iterator["subprocess.Popen[str]"]:
    path = os.pathsep.join((str(_ROOT), str(_ROOT / "kernels"), os.environ.get("PYTHONPATH", "")))
    environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-m", "synpro_engine", "launch", "--nproc-per-node", "2", *arguments],
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        yield process
    finally:
        for one in (*psutil.Process(process.pid).children(), process) if process.poll() is None else ():
            one.kill()
        process.wait()


@contextmanager
def _training(directory: Path) -> Iterator["subprocess.Popen[str]"]:
    """A job that has begun to pretrain, and would for long."""
    settings = ("pretrain.max_steps=100000", "pretrain.checkpoint_every=0", "pretrain.eval_every=100000")
    with _launched("pretrain", "smoke", *settings, "--dir", str(directory)) as process:
        metrics = directory / "pretrain.partial" / "metrics.jsonl"
        end = time.monotonic() + 300
        while not (metrics.exists() and '"train"' in metrics.read_text()):
            assert process.poll() is None and time.monotonic() < end, process.communicate()
            time.sleep(0.1)
        yield process


def _kill_rank_1(process: "subprocess.Popen[str]") -> None:
    while process.poll() is None:
        for rank in psutil.Process(process.pid).children():
            with suppress(psutil.Error):  # begins or ends
                if rank.environ().get("RANK") == "1":
                    return rank.kill()
        time.sleep(0.01)
    raise AssertionError(process.communicate())


def _last_line(error: str) -> str:
    return error.strip().splitlines()[-1]


def test_a_users_fault_ends_with_one_line_and_its_code(tmp_path: Path) -> None:
    with _launched("run", "smoke", "parallel.tp=3", "--dir", str(tmp_path / "run")) as process:
        _, error = process.communicate(timeout=300)
    assert process.returncode == 2
    who = r"(rank 1 on \S+ failed: )?"  # rank 1 speaks where rank 0 is late
    wanted = f"error: {who}`parallel`: tp 3 x pp 1 does not divide the 2 process.*"
    assert re.fullmatch(wanted, _last_line(error)) and error.count("error: ") == 1 and "Traceback" not in error, error


def test_launchers_of_two_nodes_end_with_the_fault_and_nothing_else(tmp_path: Path) -> None:
    """The first one is where they meet: what it takes with it when it ends must not be the other's fault."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        place = f"127.0.0.1:{free.getsockname()[1]}"
    meeting = f"--nnodes 2 --nproc-per-node 1 --rdzv-backend c10d --rdzv-endpoint {place} --rdzv-id one".split()
    command = ("run", "smoke", "corpus.source=/nowhere", "--dir", str(tmp_path / "run"))
    with _launched(*meeting, *command) as one, _launched(*meeting, *command) as other:
        said = [process.communicate(timeout=300)[1] for process in (one, other)]
        assert [one.returncode, other.returncode] == [2, 2], said
    together = "".join(said)
    assert together.count("error: ") == together.count("error: /nowhere: no such file") == 1
    assert "Traceback" not in together and "c10d" not in together


def test_a_signal_to_the_launcher_saves_and_ends_with_75(tmp_path: Path) -> None:
    with _training(tmp_path) as process:
        process.send_signal(signal.SIGTERM)
        _, error = process.communicate(timeout=300)
    assert process.returncode == 75, error
    step = re.search(r"stopped: .* after step (\d+), which is saved; the same command goes on", _last_line(error))
    assert step is not None, error
    assert (tmp_path / "pretrain.partial" / "checkpoints" / f"step-{int(step[1]):08d}").is_dir()


@pytest.mark.parametrize(
    "wait_s", [0.3, pytest.param(0.0, marks=pytest.mark.slow), pytest.param(1.5, marks=pytest.mark.slow)]
)
def test_a_signal_while_ranks_start_ends_with_75(tmp_path: Path, wait_s: float) -> None:
    with _launched("pretrain", "smoke", "--dir", str(tmp_path)) as process:
        while len(psutil.Process(process.pid).children()) < 2:
            assert process.poll() is None, process.communicate()
            time.sleep(0.01)
        time.sleep(wait_s)
        process.send_signal(signal.SIGTERM)
        _, error = process.communicate(timeout=300)
    assert process.returncode == 75 and "error:" not in error, error


def _starting(directory: Path) -> AbstractContextManager["subprocess.Popen[str]"]:
    """A job whose ranks are there, and have not met."""
    return _launched("pretrain", "smoke", "--dir", str(directory))


@pytest.mark.parametrize("job", [_starting, pytest.param(_training, marks=pytest.mark.slow)])
def test_a_killed_rank_is_named_last(tmp_path: Path, job: Callable[[Path], Any]) -> None:
    with job(tmp_path) as process:
        _kill_rank_1(process)
        begun = time.monotonic()
        _, error = process.communicate(timeout=300)
    assert time.monotonic() - begun < 60
    assert process.returncode == 128 + signal.SIGKILL, error
    assert re.fullmatch(r"error: rank 1 on \S+ was killed by SIGKILL .*", _last_line(error)), error
    assert "Traceback" not in error and len(error[error.index("error:") :].splitlines()) <= 2, error


@pytest.mark.slow
def test_with_restarts_a_killed_rank_is_begun_again_and_one_that_was_asked_to_stop_is_not(tmp_path: Path) -> None:
    def steps() -> int:
        metrics = tmp_path / "pretrain.partial" / "metrics.jsonl"
        return metrics.read_text().count('"train"') if metrics.exists() else 0

    def wait_for(more: int) -> None:
        end = time.monotonic() + 300
        while steps() < more:
            assert process.poll() is None and time.monotonic() < end
            time.sleep(0.1)

    settings = ("pretrain.max_steps=100000", "pretrain.checkpoint_every=2", "pretrain.eval_every=100000")
    with _launched("--max-restarts", "3", "pretrain", "smoke", *settings, "--dir", str(tmp_path)) as process:
        wait_for(5)
        psutil.Process(process.pid).children()[1].kill()
        wait_for(steps() + 5)  # of the ranks that were begun again
        process.send_signal(signal.SIGTERM)
        _, error = process.communicate(timeout=300)
    assert process.returncode == 75, error
    assert error.count("going on from step") == 1 and "which is saved; the same command goes on" in error, error


_CLOCKS = ("metrics.jsonl", "tensorboard")  # what holds times


def _artifacts(run: Path) -> dict[str, str]:
    stages = [read_manifest(file.parent) for file in sorted(run.rglob(MANIFEST))]
    return {f"{m.kind} {n}": h for m in stages for n, h in m.files.items() if not any(c in n for c in _CLOCKS)}


@pytest.mark.slow
def test_a_run_that_is_stopped_in_every_stage_ends_as_one_that_never_was(tmp_path: Path) -> None:
    stopped: set[str] = set()
    line = ""
    while True:
        with _launched("run", "smoke", "--dir", str(tmp_path / "run")) as process:
            assert process.stderr is not None
            for line in process.stderr:
                begins = re.match(r"\[(\S+)\] begins", line)
                if begins and begins[1] not in stopped:
                    stopped.add(begins[1])
                    time.sleep(0.5)
                    process.send_signal(signal.SIGTERM)
            code = process.wait(timeout=60)
        if code == 0:
            break
        assert code == 75, line
    assert len(stopped) >= 10
    with _launched("run", "smoke", "--dir", str(tmp_path / "whole")) as process:
        _, error = process.communicate(timeout=600)
    assert process.returncode == 0, error
    assert _artifacts(tmp_path / "run") == _artifacts(tmp_path / "whole")


@pytest.mark.parametrize(("rank", "said"), [("0", "stopped: SIGTERM: nothing was in hand\n"), ("1", "")])
def test_of_ranks_that_are_ended_while_they_start_the_first_one_alone_speaks(rank: str, said: str) -> None:
    script = (
        "import os, signal; import synpro_engine.dist.environment; from synpro_engine.cli.ending import run_script\n"
        "run_script(lambda: os.kill(os.getpid(), signal.SIGTERM))"
    )
    place = {"RANK": rank, "WORLD_SIZE": "2", "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": "2"} | {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "1",
    }
    done = subprocess.run([sys.executable, "-c", script], env=os.environ | place, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (75, said)
