"""The precision of every op here: whatever the operands' dtype, products, sums and results are fp32 (fp64 for fp64)."""

import functools
from collections.abc import Callable

import torch
from torch import Tensor

HALVES = (torch.float16, torch.bfloat16)
FLOATS = (*HALVES, torch.float32, torch.float64)


# bf16 keeps 8 bits and fp16 11: a sum over a width of 4096 in either would be noise in its last digits.
def precise_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of products, sums and results: fp64 for fp64 inputs, else fp32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def precise(tensor: Tensor) -> Tensor:
    """Return the tensor in the dtype of its sums."""
    return tensor.to(precise_dtype(tensor.dtype))


def operand(tensor: Tensor) -> Tensor:
    """What the products multiply: an fp32 copy of halves on CPUs (few multiply them at speed), else the tensor."""
    return tensor.float() if tensor.device.type == "cpu" and tensor.dtype in HALVES else tensor


@functools.cache
def wide_mm() -> bool:
    """Whether torch multiplies halves on this GPU into fp32. Tried once: an overload that is there may still refuse."""
    return _takes(lambda half, full: torch.mm(half, half, out_dtype=full.dtype, out=full))


@functools.cache
def wide_addmm() -> bool:
    """Whether it also adds such a product to an fp32 tensor; some releases that do the first refuse this."""
    # torch 2.8 and 2.9 have this overload and raise when it is called, so neither a version nor a name decides.
    return _takes(lambda half, full: torch.addmm(full, half, half, out_dtype=full.dtype, out=full))


def _takes(call: Callable[[Tensor, Tensor], object]) -> bool:
    # bf16 stands for both halves, and the current device for all: the answer is kept for the life of the process.
    half, full = (torch.zeros(16, 16, dtype=dtype, device="cuda") for dtype in (torch.bfloat16, torch.float32))
    try:
        call(half, full)
    except (RuntimeError, TypeError, ValueError):  # what torch raises for arguments that an operator does not know
        return False
    return True


def mm(a: Tensor, b: Tensor) -> Tensor:
    """Product with accumulation and result in fp32 (fp64 for fp64), also for half-precision operands."""
    if a.dtype not in HALVES:
        return a @ b
    # A plain product of halves sums in fp32 and then rounds its result to 8 or 11 bits.
    if a.is_cuda and wide_mm():
        return torch.mm(a, b, out_dtype=torch.float32)
    return a.float() @ b.float()


def product(a: Tensor, b: Tensor, out: Tensor) -> Tensor:
    """Write a @ b to `out`, which is fp32 (fp64 for fp64 operands) or of the operands' dtype."""
    if a.dtype == out.dtype:
        return torch.mm(a, b, out=out)
    if a.is_cuda and wide_mm():
        return torch.mm(a, b, out_dtype=out.dtype, out=out)
    return out.copy_(_without_copies(a, b))


def add_product(a: Tensor, b: Tensor, out: Tensor) -> Tensor:
    """Add a @ b to `out`, of a dtype as in `product`."""
    if a.dtype == out.dtype:
        return out.addmm_(a, b)
    if a.is_cuda and wide_addmm():
        return torch.addmm(out, a, b, out_dtype=out.dtype, out=out)
    # Where only torch.mm takes out_dtype the product exists once more in fp32 beside `out`, but is not rounded.
    return out.add_(mm(a, b) if a.is_cuda and wide_mm() else _without_copies(a, b))


def _without_copies(a: Tensor, b: Tensor) -> Tensor:
    """On CUDA rounded to the operands' dtype (fp32 sums inside), so that no large operand is copied; else as `mm`."""
    return a @ b if a.is_cuda else mm(a, b)
