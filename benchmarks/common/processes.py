"""Programs in interpreters of their own, which import what this one imports, wherever it was started."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence

from synpro_engine.backend.huge_pages import VARIABLE


def command(module: str, *arguments: str) -> list[str]:
    """What runs a module as a program; it needs `variables`."""
    return [sys.executable, "-m", module, *arguments]


def variables(more: Mapping[str, str]) -> dict[str, str]:
    """The environment of such a process: this one's with its import path, and `more`."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **more}


# Fewer arenas and an early mmap: freed blocks go back to the kernel, and growth is what the step holds. It takes time.
_FOR_PEAKS = {VARIABLE: "", "MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": str(1 << 20)}


def run_fresh(module: str, arguments: Sequence[str], environment: Mapping[str, str] = _FOR_PEAKS) -> dict[str, object]:
    """Run a module as a program and return the JSON object of its last output line.

    environment: beside this process' own; by default such that peaks of memory tell. Raises RuntimeError with the last
    line of its errors where it fails.
    """
    done = subprocess.run(
        command(module, *arguments), capture_output=True, text=True, env=variables(environment), check=False
    )
    if done.returncode:
        raise RuntimeError((done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1])
    return json.loads(done.stdout.strip().splitlines()[-1])
