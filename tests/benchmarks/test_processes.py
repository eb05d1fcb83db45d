"""What a benchmark starts ends with it, even where it is killed and can tell nobody."""

import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from benchmarks.common.processes import variables

_SECONDS = 240.0
# What each starts, in place of Python: a program that says who it is and would stay.
_STARTS = {
    "real_text": "from benchmarks.real_text.commands import Commands as C; run = lambda: C().run(['doctor'])",
    "data_bound": "from benchmarks.data_bound.runs import _synpro; run = lambda: _synpro('doctor')",
    "fresh": "from benchmarks.common.processes import run_fresh; run = lambda: run_fresh('x', [])",
}


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="a child is tied to its parent by Linux' prctl")
@pytest.mark.parametrize("name", _STARTS)
def test_what_a_killed_benchmark_started_ends_with_it(name: str, tmp_path: Path) -> None:
    told, stays = tmp_path / "pid", tmp_path / "stays"
    stays.write_text(f"#!/bin/sh\necho $$ > {told}.new && mv {told}.new {told}\nexec sleep {_SECONDS}\n")
    stays.chmod(0o755)
    program = f"import sys; {_STARTS[name]}; sys.executable = {str(stays)!r}; run()"
    benchmark = subprocess.Popen([sys.executable, "-c", program], env=variables({}))
    try:
        _wait(told.exists)
        child = psutil.Process(int(told.read_text()))
    finally:
        benchmark.kill()
        benchmark.wait()
    _wait(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE)


@pytest.mark.parametrize("name", ["real_text", "data_bound"])
@pytest.mark.parametrize(("ends", "status", "killed"), [("exit 2", 2, False), ("kill -KILL $$", 1, True)])
def test_a_benchmark_ends_as_the_command_that_it_started(
    name: str, ends: str, status: int, killed: bool, tmp_path: Path
) -> None:
    fails = tmp_path / "fails"
    fails.write_text(f"#!/bin/sh\n{ends}\n")
    fails.chmod(0o755)
    program = f"""
import sys
from synpro_engine.cli.ending import run_script
{_STARTS[name]}
sys.executable = {str(fails)!r}
sys.exit(run_script(run))
"""
    done = subprocess.run([sys.executable, "-c", program], env=variables({}), capture_output=True, text=True)
    assert done.returncode == status
    assert bool(re.search(r"^error: `synpro doctor` was ended by SIGKILL\n\Z", done.stderr, re.MULTILINE)) == killed
    assert "Traceback" not in done.stderr


def _wait(until: Callable[[], bool]) -> None:
    end = time.monotonic() + _SECONDS / 2
    while not until():
        assert time.monotonic() < end
        time.sleep(0.05)
