"""Which implementation a tensor goes to, and the arithmetic they share. Knows no formula.

CPU tensors in fp32, bf16 or fp16 go to C++ where it was built, bf16 and fp16 on CUDA to Triton (sm_80 and later);
everything else (fp64, fp32 on CUDA, other devices) takes the blocked PyTorch path.
"""

import torch
from torch import Tensor

from synpro_kernels.extension import csrc_loaded
from synpro_kernels.triton_status import triton_status

_HALVES = (torch.float16, torch.bfloat16)
_MM_HAS_OUT_DTYPE = "dtype" in torch.ops.aten.mm.overloads()


def precise_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of products, sums and results: fp64 for fp64 inputs, else fp32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def use_csrc(tensor: Tensor) -> bool:
    """Whether the compiled op takes this tensor; it computes in fp32."""
    return tensor.device.type == "cpu" and tensor.dtype != torch.float64 and csrc_loaded()


def use_triton(tensor: Tensor) -> bool:
    """Whether a Triton kernel takes this tensor: halves do, on NVIDIA GPUs from sm_80 on, which the tiles are made for.

    fp32 goes to cuBLAS with the user's TF32 choice.
    """
    if not tensor.is_cuda or tensor.dtype not in _HALVES or torch.version.hip is not None or not triton_status()[0]:
        return False
    return torch.cuda.get_device_capability(tensor.device) >= (8, 0)


def mm(a: Tensor, b: Tensor) -> Tensor:
    """Product with accumulation and result in fp32 (fp64 for fp64), also for half-precision operands."""
    if a.dtype not in _HALVES:
        return a @ b
    if _MM_HAS_OUT_DTYPE and a.is_cuda:
        return torch.mm(a, b, out_dtype=torch.float32)
    return a.float() @ b.float()
