"""Which implementation computes a tensor. Nothing else decides this, so tests and users can look in one place."""

from typing import Literal

import torch
from torch import Tensor

from synpro_kernels.extension import csrc_loaded
from synpro_kernels.triton_status import triton_status

Implementation = Literal["triton", "csrc", "torch"]


def implementation_for(hidden: Tensor) -> Implementation:
    """Triton on CUDA, C++ on the CPU, plain PyTorch in fp64 and where the others are missing."""
    if hidden.dtype == torch.float64:
        return "torch"
    if hidden.is_cuda:
        return "triton" if triton_status()[0] else "torch"
    return "csrc" if hidden.device.type == "cpu" and csrc_loaded() else "torch"
