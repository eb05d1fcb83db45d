"""What a result was measured on: device, versions, commit, threads, time. Reads the machine and changes nothing."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import re
import subprocess
import time
from pathlib import Path

import torch

from synpro_engine.backend.huge_pages import VARIABLE

QUIET = 0.05
"""Share of the machine that other processes may take while times are quoted."""
ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("triton", "liger-kernel", "cut-cross-entropy", "quack-kernels", "nvidia-cutlass-dsl")


def environment(device: torch.device) -> dict[str, object]:
    """Return a flat, JSON-ready record."""
    record: dict[str, object] = {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_name(),
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "allocator": os.environ.get(VARIABLE, ""),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "versions": {name: found for name in PACKAGES if (found := version(name))},
        **commit(),
        "utc": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "load_average": os.getloadavg()[0],
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        record |= {
            "capability": f"{properties.major}.{properties.minor}",
            "multiprocessors": properties.multi_processor_count,
            "l2_bytes": properties.L2_cache_size,
            "cuda": torch.version.cuda,
        }
    return record


def version(package: str) -> str | None:
    """Return the installed version of a distribution, or None."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def cpu_name() -> str:
    """Return the processor's model name."""
    found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return found.group(1) if found else platform.machine()


def commit() -> dict[str, object]:
    """Return the commit, and whether the working tree differs from it; None where this is no git checkout."""
    head, changes = _git("rev-parse", "HEAD"), _git("status", "--porcelain", "--untracked-files=no")
    return {"commit": head, "dirty": None if changes is None else bool(changes)}


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return None
    return None if done.returncode else done.stdout.strip()


class ForeignLoad:
    """How busy other processes kept the CPUs since this was made: whether the machine was quiet while we timed."""

    def __init__(self) -> None:
        self._busy, self._own, self._start = _busy_seconds(), _own_seconds(), time.perf_counter()

    def share(self) -> float:
        """Return their share of all CPU time so far, 0 to 1."""
        foreign = (_busy_seconds() - self._busy) - (_own_seconds() - self._own)
        elapsed = time.perf_counter() - self._start
        return min(1.0, max(0.0, foreign) / max(elapsed * (os.cpu_count() or 1), 1e-9))


def _own_seconds() -> float:
    """Of this process and of those that it started and waited for."""
    return sum(os.times()[:4])


def _busy_seconds() -> float:
    user, nice, system, _, _, interrupts, soft, *_ = map(int, Path("/proc/stat").read_text().split("\n")[0].split()[1:])
    return (user + nice + system + interrupts + soft) / os.sysconf("SC_CLK_TCK")
