"""What is measured may fail: said in a record, so that what was measured before and comes after is not lost."""

from __future__ import annotations

import torch

from synpro_engine.config import first_line


def failure(error: Exception) -> str:
    """Of one thing that was to be measured, in a line."""
    return f"failed: {first_line(error)}"


def takes_more(device: torch.device) -> bool:
    """Whether a device still works for this process: after an illegal access every call to CUDA fails."""
    if device.type == "cuda":
        try:
            torch.cuda.synchronize(device)
        except RuntimeError:
            return False
    return True


def ended(device: torch.device, behind: str) -> str:
    """What is said where it does not."""
    return f"error: {device} does nothing more for this process after {behind}; what comes behind it was not run"
