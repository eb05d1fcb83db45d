"""Matrix products with fp32 sums, whatever the operands' dtype. Knows nothing of logits."""

import torch
from torch import Tensor

from synpro_kernels.linear_logprob.dispatch import Implementation

_ADDMM_HAS_OUT_DTYPE = "dtype_out" in torch.ops.aten.addmm.overloads()


def operand(tensor: Tensor, how: Implementation) -> Tensor:
    """What the products multiply: an fp32 copy on CPUs (few multiply halves at speed), else the tensor."""
    half = tensor.dtype in (torch.bfloat16, torch.float16)
    return tensor.float() if half and tensor.device.type == "cpu" and how != "triton" else tensor


def product(a: Tensor, b: Tensor, out: Tensor) -> Tensor:
    """Write a @ b to `out`, which is fp32 (fp64 for fp64 operands)."""
    if a.dtype == out.dtype:
        return torch.mm(a, b, out=out)
    if _ADDMM_HAS_OUT_DTYPE and a.is_cuda:
        return torch.mm(a, b, out_dtype=out.dtype, out=out)
    return out.copy_(_product(a, b))


def add_product(a: Tensor, b: Tensor, out: Tensor) -> Tensor:
    """Add a @ b to `out`, which is fp32 (fp64 for fp64 operands)."""
    if a.dtype == out.dtype:
        return out.addmm_(a, b)
    if _ADDMM_HAS_OUT_DTYPE and a.is_cuda:
        return torch.addmm(out, a, b, out_dtype=out.dtype, out=out)
    return out.add_(_product(a, b))


def _product(a: Tensor, b: Tensor) -> Tensor:
    """Without such an overload: rounded to the operands' dtype on CUDA (fp32 sums inside), exact copies elsewhere."""
    return a @ b if a.is_cuda else a.float() @ b.float()
