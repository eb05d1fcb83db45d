"""Which implementation a tensor goes to. Knows no formula.

CPU tensors in fp32, bf16 or fp16 go to C++ where it was built, bf16 and fp16 on CUDA to Triton (sm_80 and later);
everything else (fp64, fp32 on CUDA, other devices) takes the blocked PyTorch path.
"""

import torch
from torch import Tensor

from synpro_kernels.common.arithmetic import HALVES
from synpro_kernels.common.extension import csrc_loaded
from synpro_kernels.common.launch import capability_of
from synpro_kernels.common.triton_status import triton_status


def use_csrc(tensor: Tensor) -> bool:
    """Whether the compiled op takes this tensor; it computes in fp32."""
    return tensor.device.type == "cpu" and tensor.dtype != torch.float64 and csrc_loaded()


def use_triton(tensor: Tensor) -> bool:
    """Whether a Triton kernel takes this tensor: halves do, on NVIDIA GPUs from sm_80 on, which the tiles are made for.

    fp32 goes to cuBLAS with the user's TF32 choice.
    """
    if not tensor.is_cuda or tensor.dtype not in HALVES or torch.version.hip is not None or not triton_status()[0]:
        return False
    return capability_of(tensor) >= 80
