"""Bringing what the host has to a device, without the host waiting for what the device is at."""

import torch
from torch import Tensor


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on `device`; of one on the host, a copy that stands in line behind what a GPU was given before."""
    if device.type == "cpu" or tensor.device.type != "cpu":
        return tensor.to(device)
    # From pageable memory CUDA copies only when the work before is done, and the host stands still until then.
    # Nor from memory with gaps, which goes by a pageable copy.
    return tensor.contiguous().pin_memory().to(device, non_blocking=True)
