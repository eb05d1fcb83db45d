"""Which implementation computes a tensor. Nothing else decides this, so tests and users can look in one place."""

from typing import Literal

import torch
from torch import Tensor

from synpro_kernels.common.extension import csrc_loaded
from synpro_kernels.common.launch import capability_of
from synpro_kernels.common.triton_status import triton_status

Implementation = Literal["triton", "csrc", "torch"]


def implementation_for(hidden: Tensor) -> Implementation:
    """Triton on CUDA (from sm_80), C++ on the CPU, plain PyTorch in fp64 and where the others are missing."""
    if hidden.dtype == torch.float64:
        return "torch"
    if hidden.is_cuda:
        ampere = capability_of(hidden) >= 80  # the kernels' tiles need its instructions
        return "triton" if ampere and triton_status()[0] else "torch"
    return "csrc" if hidden.device.type == "cpu" and csrc_loaded() else "torch"
