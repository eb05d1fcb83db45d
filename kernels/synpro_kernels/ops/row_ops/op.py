"""The public entries `rms_norm`, `swiglu` and `rotary`, and their backends.

Shape suffixes: H width, F gated width; S positions, B rows, n heads, h width of a head.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from synpro_kernels.common.arithmetic import FLOATS
from synpro_kernels.common.dispatch import UP_TO_FP32, Backends
from synpro_kernels.common.first_order import check_first_order

WIDEST = 1 << 13
"""Columns of the widest row whose norm is not left to PyTorch on CUDA: a program holds a row in registers."""


def rms_norm(x: Tensor, weight_H: Tensor, eps: float) -> Tensor:
    """x / sqrt(mean(x^2) + eps) * weight over the last dimension (arXiv 1910.07467).

    C++ on the CPU and Triton on CUDA, where PyTorch makes six ops of it, and as many of its gradients. Once
    differentiable there.

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
    kernels = None if x.is_cuda and x.shape[-1] > WIDEST else RMS_NORM.kernels(x)
    if kernels is None:
        return F.rms_norm(x, (x.shape[-1],), weight_H, eps)
    if torch.is_grad_enabled() and (x.requires_grad or weight_H.requires_grad):
        return _Norm.apply(x, weight_H, eps, kernels)
    return kernels.forward(x, weight_H, eps)


def swiglu(gate_up: Tensor) -> Tensor:
    """silu(gate) * up, of gates and behind them what they gate (arXiv 2002.05202).

    C++ on the CPU and Triton on CUDA, for gradients too. Once differentiable there.

    Args:
        gate_up: [..., 2 F], fp16, bf16, fp32 or fp64.

    Returns:
        [..., F] in the same dtype; computed in fp32 there, or as PyTorch does.

    Raises:
        ValueError: naming the argument and what was expected.

    """
    if gate_up.dim() < 1 or gate_up.shape[-1] % 2 or gate_up.dtype not in FLOATS:
        raise ValueError(f"gate_up: expected floating [..., 2 F], got {gate_up.dtype} {list(gate_up.shape)}")
    kernels = SWIGLU.kernels(gate_up)
    if kernels is None:
        gate, up = gate_up.chunk(2, -1)
        return F.silu(gate) * up
    if torch.is_grad_enabled() and gate_up.requires_grad:
        return _Gate.apply(gate_up, kernels)
    return kernels.forward(gate_up)


def rotary(x_SBnh: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Pairs (i, i + h / 2) of each head turned by their angles (arXiv 2104.09864).

    C++ on the CPU and Triton on CUDA, in one pass, where PyTorch makes some ten ops of it and of its gradient, which is
    the turn back. Once differentiable there, in x. The tables are made by `rotary_tables`, once for all that turn by
    them: queries, keys, and every layer.

    Args:
        x_SBnh: [S, B, n, h] with h even, fp16, bf16, fp32 or fp64; rows of h are read where they lie.
        cos: of the angles, [S, B or 1, h] in fp32, the same in both halves of h; contiguous.
        sin: likewise.

    Returns:
        [S, B, n, h] in x's dtype, contiguous; computed in fp32 (fp64 for fp64).

    Raises:
        ValueError: naming the argument and what was expected.

    """
    if x_SBnh.dim() != 4 or x_SBnh.shape[-1] % 2 or x_SBnh.dtype not in FLOATS:
        raise ValueError(f"x_SBnh: expected floating [S, B, n, h], got {x_SBnh.dtype} {list(x_SBnh.shape)}")
    times, batch, _, width = x_SBnh.shape
    for name, table in (("cos", cos), ("sin", sin)):
        fits = table.shape in ((times, batch, width), (times, 1, width)) and table.shape == cos.shape
        if not fits or table.dtype != torch.float32 or not table.is_contiguous():
            found = f"{table.dtype} {list(table.shape)}"
            raise ValueError(f"{name}: expected contiguous fp32 [{times}, {batch} or 1, {width}], got {found}")
    kernels = ROTARY.kernels(x_SBnh)
    if kernels is None:
        return _rotated(x_SBnh, cos[:, :, None], sin[:, :, None])
    if torch.is_grad_enabled() and x_SBnh.requires_grad:
        return _Rotary.apply(x_SBnh, cos, sin, kernels)
    return kernels.forward(x_SBnh, cos, sin)


def rotary_tables(angle: Tensor) -> Tensor:
    """fp32 angles [S, B or 1, h / 2] -> [2, S, B or 1, h]: cos and sin as `rotary` takes them, of each pair twice."""
    return torch.stack((angle.cos(), angle.sin())).repeat(1, 1, 1, 2)


def _rotated(x_SBnh: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    wide = x_SBnh.to(torch.promote_types(x_SBnh.dtype, torch.float32))
    first, second = wide.chunk(2, -1)
    turned = wide * cos + torch.cat((-second, first), -1) * sin
    return turned.to(x_SBnh.dtype)


@dataclass(frozen=True)
class RowKernels:
    """An op in a backend, without an autograd formula: from its inputs, and from the gradient and them."""

    forward: Callable[..., Tensor]
    backward: Callable[..., Any]


class _Norm(torch.autograd.Function):
    """The norm. Its backward pass takes the mean of the squares again, from a row that it has to read anyway."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight_H: Tensor, eps: float, kernels: RowKernels) -> Tensor:
        """See `rms_norm`."""
        ctx.save_for_backward(x, weight_H)
        ctx.eps, ctx.kernels = eps, kernels
        return kernels.forward(x, weight_H, eps)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
        """[..., H] -> that of x, that of weight_H, None, None."""
        check_first_order("rms_norm")
        return *ctx.kernels.backward(grad, *ctx.saved_tensors, ctx.eps), None, None


class _Gate(torch.autograd.Function):
    """The gate, whose backward pass writes both halves where they belong."""

    @staticmethod
    def forward(ctx: Any, gate_up: Tensor, kernels: RowKernels) -> Tensor:
        """See `swiglu`."""
        ctx.save_for_backward(gate_up)
        ctx.kernels = kernels
        return kernels.forward(gate_up)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        """[..., F] -> [..., 2 F], None."""
        check_first_order("swiglu")
        return ctx.kernels.backward(grad, *ctx.saved_tensors), None


class _Rotary(torch.autograd.Function):
    """The turn, and back."""

    @staticmethod
    def forward(ctx: Any, x_SBnh: Tensor, cos: Tensor, sin: Tensor, kernels: RowKernels) -> Tensor:
        """See `rotary`; cos and sin [S, B or 1, h]."""
        ctx.save_for_backward(cos, sin)
        ctx.kernels = kernels
        return kernels.forward(x_SBnh, cos, sin)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        """[S, B, n, h] -> that of x, and nothing for the rest."""
        check_first_order("rotary")
        return ctx.kernels.backward(grad, *ctx.saved_tensors), None, None, None


def _compiled(name: str) -> RowKernels:
    ops = torch.ops.synpro_csrc
    if name == "rotary":
        return RowKernels(_csrc_rotary, partial(_csrc_rotary, back=True))
    return RowKernels(getattr(ops, name), getattr(ops, f"{name}_backward"))


def _csrc_rotary(x_SBnh: Tensor, cos: Tensor, sin: Tensor, *, back: bool = False) -> Tensor:
    rows = x_SBnh if x_SBnh.stride(-1) == 1 else x_SBnh.contiguous()
    return torch.ops.synpro_csrc.rotary(rows, cos, sin, back)


def _triton(name: str) -> RowKernels:
    from synpro_kernels.ops.row_ops import triton_backend

    return RowKernels(getattr(triton_backend, name), getattr(triton_backend, f"{name}_backward"))


def _backends(name: str) -> Backends[RowKernels | None]:
    return Backends(
        torch=None, csrc=lambda: _compiled(name), csrc_dtypes=(torch.bfloat16, torch.float32),
        triton=lambda: _triton(name), triton_dtypes=UP_TO_FP32, triton_multiplies=False,
    )  # fmt: skip


RMS_NORM, SWIGLU, ROTARY = map(_backends, ("rms_norm", "swiglu", "rotary"))
