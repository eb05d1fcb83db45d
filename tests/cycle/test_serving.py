"""The cycle with its generation done by servers that are started from the folders it writes, one after the other."""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO

import pytest

from docs.site.schemas import faults_in
from synpro_engine.synth import DOCUMENTS, REJECTS, lines_of

ROOT = Path(__file__).parents[2]
SERVER = ROOT / "tests/synth/model_server.py"
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join((str(ROOT), os.environ.get("PYTHONPATH", "")))}


def _start(log: IO[str], *command: str | Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, *map(str, command)], env=ENVIRONMENT, stdout=log, stderr=log)


def _exported(run: Path, operation: str, job: subprocess.Popen[bytes], log: Path) -> Path:
    def found() -> list[Path]:
        return [path for path in run.glob(f"served/{operation}-1-*") if "." not in path.name]

    _until(lambda: bool(found()), job, log)
    return found()[0]


def _until(there: Callable[[], bool], job: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + 300
    while not there():
        assert job.poll() is None and time.monotonic() < end, log.read_text()[-3000:]
        time.sleep(0.1)


@pytest.mark.slow
def test_a_cycle_generates_by_servers_that_have_its_weights_and_by_no_others(tmp_path: Path) -> None:
    run, log = tmp_path / "run", tmp_path / "log"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    by_server = [f"generate.server.{setting}" for setting in (f"endpoint=http://127.0.0.1:{port}/v1", "model=tuned")]
    command = ["-m", "synpro_engine", "run", "smoke", "--dir", run, *by_server]
    with log.open("w") as file:
        job = _start(file, *command)
        folder = _exported(run, "rephrase", job, log)
        server = _start(file, SERVER, folder, "tuned", str(port))
        try:
            # Its weights stay where the next operation's should be: the job must not take them for those, and waits.
            _until(lambda: "waiting for this stage's weights" in log.read_text(), job, log)
            assert server.poll() is None and not folder.exists()
        finally:
            server.kill()
            server.wait()
        told = log.read_text()
        assert "with this stage's weights: 100% of its greedy tokens are the same" in told
        assert "`generate.server`: waiting for" in told and "serves `tuned` with other weights" in told
        assert not (run / "round-1/generate-reformat").exists()
        server = _start(file, SERVER, _exported(run, "reformat", job, log), "tuned", str(port))
        try:
            assert job.wait(300) == 0, log.read_text()[-3000:]
        finally:
            server.kill()
            server.wait()
        # All is there: nobody asks for the server any more.
        assert _start(file, *command).wait(120) == 0, log.read_text()[-3000:]
    for corpus in (run / f"round-1/generate-{operation}/corpus" for operation in ("rephrase", "reformat")):
        lines = [line for stem in (DOCUMENTS, REJECTS) for _, line in lines_of(corpus, stem)]
        assert {json.loads(line)["provenance"]["engine"] for line in lines} == {"server"}
    assert not list((run / "served").iterdir()) and faults_in(run) == []
