"""What a benchmark starts ends with it, even where it is killed and can tell nobody."""

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from benchmarks.common.processes import variables

_SECONDS = 60.0
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


def _wait(until: Callable[[], bool]) -> None:
    end = time.monotonic() + _SECONDS / 2
    while not until():
        assert time.monotonic() < end
        time.sleep(0.05)
