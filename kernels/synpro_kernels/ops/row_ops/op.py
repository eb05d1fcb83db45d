"""The public entries `rms_norm` and `swiglu`, and their backends. Shape suffixes: H width, F gated width."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from synpro_kernels.common.arithmetic import FLOATS
from synpro_kernels.common.dispatch import Backends

_CSRC_DTYPES = (torch.bfloat16, torch.float32)


def rms_norm(x: Tensor, weight_H: Tensor, eps: float) -> Tensor:
    """x / sqrt(mean(x^2) + eps) * weight over the last dimension (arXiv 1910.07467).

    C++ on the CPU, where PyTorch makes six ops of it; what wants gradients is PyTorch's.

    Args:
        x: [..., H], fp16, bf16, fp32 or fp64.
        weight_H: in x's dtype.
        eps: added to the mean.

    Returns:
        [..., H] in x's dtype; sums are fp32 (fp64 for fp64).

    Raises:
        ValueError: naming the argument and what was expected.

    """
    if x.dim() < 1 or x.dtype not in FLOATS:
        raise ValueError(f"x: expected floating [..., H], got {x.dtype} {list(x.shape)}")
    if weight_H.shape != x.shape[-1:] or weight_H.dtype != x.dtype:
        found = f"{weight_H.dtype} {list(weight_H.shape)}"
        raise ValueError(f"weight_H: expected [{x.shape[-1]}] in x's {x.dtype}, got {found}")
    if torch.is_grad_enabled() and (x.requires_grad or weight_H.requires_grad):
        return _rms_norm(x, weight_H, eps)
    return RMS_NORM.kernels(x)(x, weight_H, eps)


def swiglu(gate_up: Tensor) -> Tensor:
    """silu(gate) * up, of gates and behind them what they gate (arXiv 2002.05202).

    Args:
        gate_up: [..., 2 F], fp16, bf16, fp32 or fp64.

    Returns:
        [..., F] in the same dtype; computed in fp32 on the CPU, or as PyTorch does.

    Raises:
        ValueError: naming the argument and what was expected.

    """
    if gate_up.dim() < 1 or gate_up.shape[-1] % 2 or gate_up.dtype not in FLOATS:
        raise ValueError(f"gate_up: expected floating [..., 2 F], got {gate_up.dtype} {list(gate_up.shape)}")
    if torch.is_grad_enabled() and gate_up.requires_grad:
        return _swiglu(gate_up)
    return SWIGLU.kernels(gate_up)(gate_up)


def _rms_norm(x: Tensor, weight_H: Tensor, eps: float) -> Tensor:
    return F.rms_norm(x, (x.shape[-1],), weight_H, eps)


def _swiglu(gate_up: Tensor) -> Tensor:
    gate, up = gate_up.chunk(2, -1)
    return F.silu(gate) * up


# C++ is called as a plain operator, without an autograd formula: no gradient comes to it.
RMS_NORM: Backends[Callable[[Tensor, Tensor, float], Tensor]] = Backends(
    torch=_rms_norm, csrc=lambda: torch.ops.synpro_csrc.rms_norm, csrc_dtypes=_CSRC_DTYPES
)
SWIGLU: Backends[Callable[[Tensor], Tensor]] = Backends(
    torch=_swiglu, csrc=lambda: torch.ops.synpro_csrc.swiglu, csrc_dtypes=_CSRC_DTYPES
)
