"""Programs in interpreters of their own, which import what this one imports, wherever it was started."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence

from synpro_engine.backend.huge_pages import VARIABLE
from synpro_engine.config import UserError


def alone(ranks: int) -> None:
    """UserError where several ranks were started of a program that measures one process, with files of its own."""
    if ranks > 1:
        raise UserError(f"measures one process, and {ranks} were started: call it without a launcher")


def command(module: str, *arguments: str) -> list[str]:
    """What runs a module as a program; it needs `variables`."""
    return [sys.executable, "-m", module, *arguments]


def variables(more: Mapping[str, str]) -> dict[str, str]:
    """The environment of such a process: this one's with its import path, and `more`."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **more}


_LIBC = ctypes.CDLL(None)  # loaded before any fork: a child between fork and exec should import nothing
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def ends_with_us() -> Callable[[], None] | None:
    """For `subprocess`' `preexec_fn`: the child is sent SIGTERM when this process ends, however it does.

    One that is killed can tell nobody, and a child that worked on would hold the run that the next call goes on with.
    To be called, and the child started, in the main thread: a thread's end would count as the process'. None where
    there is no prctl: only Linux has it.
    """
    if not sys.platform.startswith("linux"):
        return None
    parent = os.getpid()

    def tie() -> None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, int(signal.SIGTERM))
        if os.getppid() != parent:  # it ended before this
            os.kill(os.getpid(), signal.SIGTERM)

    return tie


def end_as(code: int, what: str) -> None:
    """SystemExit with the exit status of a command whose output was shown, unless it is 0.

    A command told its fault itself; one that a signal ended could not, so that is told here.
    """
    if code < 0:
        raise SystemExit(f"error: {what} was ended by {signal.Signals(-code).name}")
    if code:
        raise SystemExit(code)


# Fewer arenas and an early mmap: freed blocks go back to the kernel, and growth is what the step holds. It takes time.
_FOR_PEAKS = {VARIABLE: "", "MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": str(1 << 20)}


def run_fresh(module: str, arguments: Sequence[str], environment: Mapping[str, str] = _FOR_PEAKS) -> dict[str, object]:
    """Run a module as a program and return the JSON object of its last output line.

    environment: beside this process' own; by default such that peaks of memory tell. Raises RuntimeError with the last
    line of its errors where it fails.
    """
    done = subprocess.run(
        command(module, *arguments), capture_output=True, text=True, env=variables(environment), check=False,
        preexec_fn=ends_with_us(),
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError((done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1])
    return json.loads(done.stdout.strip().splitlines()[-1])
