"""The public entries `rms_norm` and `swiglu`, and their backends. Shape suffixes: H width, F gated width."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from synpro_kernels.common.arithmetic import FLOATS
from synpro_kernels.common.dispatch import Backends
from synpro_kernels.common.first_order import check_first_order

_CSRC_DTYPES = (torch.bfloat16, torch.float32)


def rms_norm(x: Tensor, weight_H: Tensor, eps: float) -> Tensor:
    """x / sqrt(mean(x^2) + eps) * weight over the last dimension (arXiv 1910.07467).

    C++ on the CPU, where PyTorch makes six ops of it, and as many of its gradients. Once differentiable there.

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
    if not (torch.is_grad_enabled() and (x.requires_grad or weight_H.requires_grad)):
        return RMS_NORM.kernels(x)(x, weight_H, eps)
    return _Norm.apply(x, weight_H, eps) if RMS_NORM.choose(x) == "csrc" else _rms_norm(x, weight_H, eps)


def swiglu(gate_up: Tensor) -> Tensor:
    """silu(gate) * up, of gates and behind them what they gate (arXiv 2002.05202).

    C++ on the CPU, for gradients too. Once differentiable there.

    Args:
        gate_up: [..., 2 F], fp16, bf16, fp32 or fp64.

    Returns:
        [..., F] in the same dtype; computed in fp32 on the CPU, or as PyTorch does.

    Raises:
        ValueError: naming the argument and what was expected.

    """
    if gate_up.dim() < 1 or gate_up.shape[-1] % 2 or gate_up.dtype not in FLOATS:
        raise ValueError(f"gate_up: expected floating [..., 2 F], got {gate_up.dtype} {list(gate_up.shape)}")
    if not (torch.is_grad_enabled() and gate_up.requires_grad):
        return SWIGLU.kernels(gate_up)(gate_up)
    return _Gate.apply(gate_up) if SWIGLU.choose(gate_up) == "csrc" else _swiglu(gate_up)


def _rms_norm(x: Tensor, weight_H: Tensor, eps: float) -> Tensor:
    return F.rms_norm(x, (x.shape[-1],), weight_H, eps)


def _swiglu(gate_up: Tensor) -> Tensor:
    gate, up = gate_up.chunk(2, -1)
    return F.silu(gate) * up


class _Norm(torch.autograd.Function):
    """The norm in C++. Its backward pass takes the mean of the squares again, from a row that it has to read anyway."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight_H: Tensor, eps: float) -> Tensor:
        """See `rms_norm`."""
        ctx.save_for_backward(x, weight_H)
        ctx.eps = eps
        return torch.ops.synpro_csrc.rms_norm(x, weight_H, eps)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        """[..., H] -> that of x, that of weight_H, None."""
        check_first_order("rms_norm")
        return *torch.ops.synpro_csrc.rms_norm_backward(grad, *ctx.saved_tensors, ctx.eps), None


class _Gate(torch.autograd.Function):
    """The gate in C++, whose backward pass writes both halves where they belong."""

    @staticmethod
    def forward(ctx: Any, gate_up: Tensor) -> Tensor:
        """See `swiglu`."""
        ctx.save_for_backward(gate_up)
        return torch.ops.synpro_csrc.swiglu(gate_up)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        """[..., F] -> [..., 2 F]."""
        check_first_order("swiglu")
        return torch.ops.synpro_csrc.swiglu_backward(grad, *ctx.saved_tensors)


# C++ is called as a plain operator, without an autograd formula: what wants a gradient goes through the classes above.
RMS_NORM: Backends[Callable[[Tensor, Tensor, float], Tensor]] = Backends(
    torch=_rms_norm, csrc=lambda: torch.ops.synpro_csrc.rms_norm, csrc_dtypes=_CSRC_DTYPES
)
SWIGLU: Backends[Callable[[Tensor], Tensor]] = Backends(
    torch=_swiglu, csrc=lambda: torch.ops.synpro_csrc.swiglu, csrc_dtypes=_CSRC_DTYPES
)
