"""What a GPU's time goes to, and where the host waits for it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.profiler import ProfilerActivity


def device_time(step: Callable[[], object]) -> str:
    """A table of the 40 operations and kernels that take most of the device's time in `step`."""
    with torch.profiler.profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as found:
        step()
        torch.cuda.synchronize()
    return found.key_averages().table(sort_by="self_cuda_time_total", row_limit=40, max_name_column_width=90)
