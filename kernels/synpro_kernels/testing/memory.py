"""How much memory a call takes beyond what was there, by the counters of Linux and of CUDA."""

from collections.abc import Callable
from pathlib import Path

import torch


def peak_growth(run: Callable[[], object], device: str) -> int | None:
    """Bytes by which `run` raised the peak of this process ("cpu") or of the current GPU ("cuda").

    None where the kernel does not let the process's peak be reset.
    """
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # resets the peak
    except OSError:
        return None
    before = _resident("VmRSS")
    run()
    return _resident("VmHWM") - before


def _resident(field: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(field)).split()[1])
