"""`rms_norm`, `swiglu`, `rotary` and their gradients on CUDA: one pass over what each reads, in fp32 registers.

Shape suffixes: H width, F gated width, P programs; S positions, B rows, n heads, h width of a head.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from synpro_kernels.common.launch import Call, ceil_div

_TILE = 4096
"""Numbers that a program holds of each tensor at least: narrow rows share one."""
_PROGRAMS = 256
"""At most, of a norm's gradient: each leaves a row of sums for the weight's. The same on every GPU, and so the bits."""
_GATES = 1024


@triton.jit
def norm_kernel(x, weight, out, rows, eps, H: tl.constexpr, WIDE: tl.constexpr, ROWS: tl.constexpr):
    """ROWS rows of x / sqrt(mean(x^2) + eps) * weight."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    h = tl.arange(0, WIDE)
    inside = (row < rows)[:, None] & (h < H)[None, :]
    at = row[:, None] * H + h[None, :]
    here = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    scale = 1.0 / tl.sqrt(tl.sum(here * here, 1) / H + eps)
    by = tl.load(weight + h, mask=h < H, other=0.0).to(tl.float32)
    tl.store(out + at, (here * scale[:, None] * by[None, :]).to(out.dtype.element_ty), mask=inside)


@triton.jit
def norm_gradient_kernel(
    grad, x, weight, grad_x, sums, rows, eps, strides, H: tl.constexpr, WIDE: tl.constexpr, ROWS: tl.constexpr
):
    """Every P-th tile of ROWS rows: dx = r g w - x r^3 sum(g w x) / H, and the sum over these rows of g x r."""
    h = tl.arange(0, WIDE)
    by = tl.load(weight + h, mask=h < H, other=0.0).to(tl.float32)
    of_weight = tl.zeros((WIDE,), tl.float32)
    first = tl.program_id(0).to(tl.int64) * ROWS
    for turn in range(strides):
        row = first + turn * tl.num_programs(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
        inside = (row < rows)[:, None] & (h < H)[None, :]
        at = row[:, None] * H + h[None, :]
        here = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
        upon = tl.load(grad + at, mask=inside, other=0.0).to(tl.float32)
        scale = 1.0 / tl.sqrt(tl.sum(here * here, 1) / H + eps)
        normed = here * scale[:, None]
        weighted = upon * by[None, :]
        along = tl.sum(weighted * normed, 1) / H
        found = (weighted - normed * along[:, None]) * scale[:, None]
        tl.store(grad_x + at, found.to(grad_x.dtype.element_ty), mask=inside)
        of_weight += tl.sum(upon * normed, 0)
    tl.store(sums + tl.program_id(0).to(tl.int64) * H + h, of_weight, mask=h < H)


@triton.jit
def gate_kernel(gate_up, out, F: tl.constexpr, BLOCK: tl.constexpr):
    """BLOCK columns of a row: silu(gate) * up."""
    row, f = tl.program_id(0).to(tl.int64), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    gate = tl.load(gate_up + row * 2 * F + f, mask=f < F, other=0.0).to(tl.float32)
    up = tl.load(gate_up + row * 2 * F + F + f, mask=f < F, other=0.0).to(tl.float32)
    tl.store(out + row * F + f, (gate * tl.sigmoid(gate) * up).to(out.dtype.element_ty), mask=f < F)


@triton.jit
def gate_gradient_kernel(grad, gate_up, out, F: tl.constexpr, BLOCK: tl.constexpr):
    """BLOCK columns of a row, in both halves of `out`: g up s (1 + gate (1 - s)) and g gate s, s = sigmoid(gate)."""
    row, f = tl.program_id(0).to(tl.int64), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    gate = tl.load(gate_up + row * 2 * F + f, mask=f < F, other=0.0).to(tl.float32)
    up = tl.load(gate_up + row * 2 * F + F + f, mask=f < F, other=0.0).to(tl.float32)
    upon = tl.load(grad + row * F + f, mask=f < F, other=0.0).to(tl.float32)
    share = tl.sigmoid(gate)
    of_gate, of_up = upon * up * share * (1.0 + gate * (1.0 - share)), upon * gate * share
    tl.store(out + row * 2 * F + f, of_gate.to(out.dtype.element_ty), mask=f < F)
    tl.store(out + row * 2 * F + F + f, of_up.to(out.dtype.element_ty), mask=f < F)


@triton.jit
def rotary_kernel(
    x, cos, sin, out, heads, of_time, of_batch, of_head, BACK: tl.constexpr, BY_ROW: tl.constexpr, WIDTH: tl.constexpr,
    HEADS: tl.constexpr, HALF: tl.constexpr,
):  # fmt: skip
    """Position s of row b, HEADS heads of it: each pair (i, i + h / 2) turned, or turned back."""
    s, b, batch = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64), tl.num_programs(1)
    n, i = tl.program_id(2) * HEADS + tl.arange(0, HEADS), tl.arange(0, HALF)
    half: tl.constexpr = WIDTH // 2
    inside = (n < heads)[:, None] & (i < half)[None, :]
    at = x + s * of_time + b * of_batch + n[:, None] * of_head + i[None, :]
    first = tl.load(at, mask=inside, other=0.0).to(tl.float32)
    second = tl.load(at + half, mask=inside, other=0.0).to(tl.float32)
    angle = ((s * batch + b) if BY_ROW else s) * WIDTH + i
    turn = tl.load(cos + angle, mask=i < half, other=0.0)[None, :]
    side = tl.load(sin + angle, mask=i < half, other=0.0)[None, :]
    if BACK:
        side = -side
    to = out + ((s * batch + b) * heads + n[:, None]) * WIDTH + i[None, :]
    tl.store(to, (first * turn - second * side).to(out.dtype.element_ty), mask=inside)
    tl.store(to + half, (second * turn + first * side).to(out.dtype.element_ty), mask=inside)


def norm_call(x: Tensor, weight_H: Tensor, eps: float) -> Call:
    """The launch that fills [..., H]."""
    x, H = x.contiguous(), x.shape[-1]
    rows, out = x.numel() // H, x.new_empty(x.shape)
    options = _tile(H)
    arguments = (x, weight_H.contiguous(), out, rows, eps)
    return Call(norm_kernel, (ceil_div(rows, options["ROWS"]),), arguments, options, (out,))


def norm_gradient_call(grad: Tensor, x: Tensor, weight_H: Tensor, eps: float) -> Call:
    """The launch that fills the gradient of x and sums [P, H] in fp32, which add up to the weight's."""
    grad, x, H = grad.contiguous(), x.contiguous(), x.shape[-1]
    rows, options = x.numel() // H, _tile(H)
    tiles = ceil_div(rows, options["ROWS"])
    programs = min(tiles, _PROGRAMS)
    grad_x, sums = x.new_empty(x.shape), x.new_empty(programs, H, dtype=torch.float32)
    arguments = (grad, x, weight_H.contiguous(), grad_x, sums, rows, eps, ceil_div(tiles, programs))
    return Call(norm_gradient_kernel, (programs,), arguments, options, (grad_x, sums))


def gate_call(gate_up: Tensor) -> Call:
    """The launch that fills [..., F]."""
    gate_up, F = gate_up.contiguous(), gate_up.shape[-1] // 2
    out = gate_up.new_empty(*gate_up.shape[:-1], F)
    grid = (gate_up.numel() // (2 * F), ceil_div(F, _GATES))
    return Call(gate_kernel, grid, (gate_up, out), {"F": F, "BLOCK": _GATES, "num_warps": 4}, (out,))


def gate_gradient_call(grad: Tensor, gate_up: Tensor) -> Call:
    """The launch that fills [..., 2 F]."""
    gate_up, F = gate_up.contiguous(), gate_up.shape[-1] // 2
    out = gate_up.new_empty(gate_up.shape)
    grid = (gate_up.numel() // (2 * F), ceil_div(F, _GATES))
    arguments = (grad.contiguous(), gate_up, out)
    return Call(gate_gradient_kernel, grid, arguments, {"F": F, "BLOCK": _GATES, "num_warps": 4}, (out,))


def rotary_call(x_SBnh: Tensor, cos: Tensor, sin: Tensor, *, back: bool = False) -> Call:
    """The launch that fills [S, B, n, h]."""
    x_SBnh = x_SBnh if x_SBnh.stride(-1) == 1 else x_SBnh.contiguous()
    times, batch, heads, width = x_SBnh.shape
    half = 1 << (width // 2 - 1).bit_length()
    at_once = min(1 << (heads - 1).bit_length(), max(1, 2048 // half))
    out = x_SBnh.new_empty(x_SBnh.shape)
    arguments = (x_SBnh, cos, sin, out, heads, *x_SBnh.stride()[:3])
    options = {
        "BACK": back, "BY_ROW": cos.shape[1] != 1, "WIDTH": width, "HEADS": at_once, "HALF": half,
        "num_warps": max(1, min(4, at_once * half // 256)),
    }  # fmt: skip
    return Call(rotary_kernel, (times, batch, ceil_div(heads, at_once)), arguments, options, (out,))


def rms_norm(x: Tensor, weight_H: Tensor, eps: float) -> Tensor:
    """See `op.rms_norm`; without a gradient."""
    return norm_call(x, weight_H, eps).launch()[0] if x.numel() else x.clone()


def rms_norm_backward(grad: Tensor, x: Tensor, weight_H: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """[..., H] -> the gradients of x and of weight_H."""
    if not x.numel():
        return x.clone(), torch.zeros_like(weight_H)
    grad_x, sums_PH = norm_gradient_call(grad, x, weight_H, eps).launch()
    return grad_x, sums_PH.sum(0).to(weight_H.dtype)


def swiglu(gate_up: Tensor) -> Tensor:
    """See `op.swiglu`; without a gradient."""
    return gate_call(gate_up).launch()[0] if gate_up.numel() else gate_up.chunk(2, -1)[0].clone()


def swiglu_backward(grad: Tensor, gate_up: Tensor) -> Tensor:
    """[..., F] -> [..., 2 F]."""
    return gate_gradient_call(grad, gate_up).launch()[0] if gate_up.numel() else gate_up.clone()


def rotary(x_SBnh: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """See `op.rotary`; cos and sin [S, B or 1, h], without a gradient."""
    return rotary_call(x_SBnh, cos, sin).launch()[0] if x_SBnh.numel() else x_SBnh.clone()


def rotary_backward(grad: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """[S, B, n, h] -> the same, turned back."""
    return rotary_call(grad, cos, sin, back=True).launch()[0] if grad.numel() else grad.clone()


def _tile(H: int) -> dict[str, int]:
    wide = 1 << (H - 1).bit_length()
    rows = max(1, _TILE // wide)
    return {"H": H, "WIDE": wide, "ROWS": rows, "num_warps": min(16, max(4, rows * wide // 512))}
