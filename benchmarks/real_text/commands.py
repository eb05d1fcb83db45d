"""Commands of the engine in processes of their own, as a user gives them, within a limit of time."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from benchmarks.common.processes import end_as, ends_with_us
from synpro_engine.config.errors import EXIT_STOPPED

_SAVES_S = 120.0
"""For what is in hand to be saved; what is killed then goes on from its checkpoint before."""


class OutOfTime(Exception):
    """The limit of this call is reached; the next one goes on."""


@dataclass(frozen=True)
class Commands:
    """Runs them one after the other. seconds: in all of them together; None has no limit."""

    seconds: float | None = None
    begun: float = field(default_factory=time.monotonic)

    def run(self, arguments: Sequence[str]) -> None:
        """Run `synpro` with its output shown. OutOfTime at the limit, SystemExit where it fails."""
        left = None if self.seconds is None else self.seconds - (time.monotonic() - self.begun)
        if left is not None and left <= 0:
            raise OutOfTime
        command = [sys.executable, "-m", "synpro_engine", *arguments]
        # One thread, for times are told as those of one core, and two studies can share a machine.
        environment = {"OMP_NUM_THREADS": "1"} | os.environ
        with subprocess.Popen(command, env=environment, preexec_fn=ends_with_us()) as process:
            try:
                code = process.wait(left)
            except subprocess.TimeoutExpired:
                process.terminate()
                try:
                    process.wait(_SAVES_S)
                except subprocess.TimeoutExpired:
                    process.kill()
                raise OutOfTime from None
            except BaseException:
                process.terminate()  # and waited for as the block ends
                raise
        if code == EXIT_STOPPED:  # a signal that both were sent
            raise OutOfTime
        end_as(code, f"`synpro {arguments[0]}`")
