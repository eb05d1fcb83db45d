"""`store_heads` on CUDA: one program a row, which reads the row once; what took a dozen small kernels."""

import triton
import triton.language as tl
from torch import Tensor

from synpro_kernels.common.launch import Call
from synpro_kernels.ops.decode_attention.types import HeadNorm


@triton.jit
def heads_kernel(
    mixed, cos, sin, key, value, page, time, query_weight, key_weight, means, query, eps,
    page_stride, head_stride, stride,
    N: tl.constexpr, R: tl.constexpr, WIDTH: tl.constexpr, HEADS: tl.constexpr, H: tl.constexpr,
    NORM: tl.constexpr, BY_HEAD: tl.constexpr, GIVEN: tl.constexpr,
):  # fmt: skip
    """Row b: all N (R + 2) heads as one tile, and once more with each pair's other half."""
    b = tl.program_id(0).to(tl.int64)
    j, h = tl.arange(0, HEADS), tl.arange(0, H)
    n, role = j // (R + 2), j % (R + 2)
    half: tl.constexpr = WIDTH // 2
    # The element that a rotation pairs with h, and the sign that it gets.
    paired = tl.where(h < half, h + half, h - half)
    inside = (j < N * (R + 2))[:, None] & (h < WIDTH)[None, :]
    row = mixed + b * N * (R + 2) * WIDTH
    x = tl.load(row + j[:, None] * WIDTH + h[None, :], mask=inside, other=0.0).to(tl.float32)
    pair = tl.load(row + j[:, None] * WIDTH + paired[None, :], mask=inside, other=0.0).to(tl.float32)
    is_query, is_key = role < R, role == R
    plain = x
    if NORM:
        squares = tl.sum(x * x, 1)
        if BY_HEAD:
            mean = squares / WIDTH
        elif GIVEN:
            mean = tl.where(is_query, tl.load(means + 2 * b), tl.load(means + 2 * b + 1))
        else:
            queries = tl.sum(tl.where(is_query, squares, 0.0), 0) / (N * R * WIDTH)
            keys = tl.sum(tl.where(is_key, squares, 0.0), 0) / (N * WIDTH)
            mean = tl.where(is_query, queries, keys)
        # Weights lie as the heads do, or are one head's for all.
        at_query = tl.zeros_like(j) if BY_HEAD else (n * R + role) * WIDTH
        at_key = tl.zeros_like(j) if BY_HEAD else n * WIDTH
        scale = 1.0 / tl.sqrt(mean + eps)
        queries_here, keys_here = inside & is_query[:, None], inside & is_key[:, None]
        weight = tl.load(query_weight + at_query[:, None] + h[None, :], mask=queries_here, other=0.0).to(tl.float32)
        weight += tl.load(key_weight + at_key[:, None] + h[None, :], mask=keys_here, other=0.0).to(tl.float32)
        others = tl.load(query_weight + at_query[:, None] + paired[None, :], mask=queries_here, other=0.0).to(
            tl.float32
        )
        others += tl.load(key_weight + at_key[:, None] + paired[None, :], mask=keys_here, other=0.0).to(tl.float32)
        x, pair = x * scale[:, None] * weight, pair * scale[:, None] * others
    wide = h < WIDTH
    turn = tl.load(cos + b * WIDTH + h, mask=wide, other=0.0)
    side = tl.load(sin + b * WIDTH + h, mask=wide, other=0.0)
    turned = x * turn[None, :] + pair * tl.where(h < half, -side, side)[None, :]
    place = (b * N * R + n * R + role)[:, None] * WIDTH + h[None, :]
    tl.store(query + place, turned.to(query.dtype.element_ty), mask=inside & is_query[:, None])
    place = tl.load(page + b) * page_stride + tl.load(time + b) * stride + (n * head_stride)[:, None] + h[None, :]
    tl.store(key + place, turned.to(key.dtype.element_ty), mask=inside & is_key[:, None])
    tl.store(value + place, plain.to(value.dtype.element_ty), mask=inside & (role == R + 1)[:, None])


def store_heads(
    mixed_BF: Tensor, cos_Bh: Tensor, sin_Bh: Tensor, key_PnTh: Tensor, value_PnTh: Tensor, page_B: Tensor,
    time_B: Tensor, norm: HeadNorm | None,
) -> Tensor:  # fmt: skip
    """Return queries [B, n, r, h]; keys and values go to the pages."""
    return heads_call(mixed_BF, cos_Bh, sin_Bh, key_PnTh, value_PnTh, page_B, time_B, norm).launch()[0]


def heads_call(
    mixed_BF: Tensor, cos_Bh: Tensor, sin_Bh: Tensor, key_PnTh: Tensor, value_PnTh: Tensor, page_B: Tensor,
    time_B: Tensor, norm: HeadNorm | None,
) -> Call:  # fmt: skip
    """The launch that fills queries [B, n, r, h] and one position each of the pages."""
    batch, (_, n, _, h) = len(mixed_BF), key_PnTh.shape
    per_key = mixed_BF.shape[1] // (n * h) - 2
    query = mixed_BF.new_empty(batch, n, per_key, h)
    # Weights are not read where there are none.
    weights = (mixed_BF, mixed_BF) if norm is None else (norm.query_weight, norm.key_weight)
    means = None if norm is None else norm.means_B2
    arguments = (
        mixed_BF.contiguous(), cos_Bh, sin_Bh, key_PnTh, value_PnTh, page_B, time_B, *weights,
        mixed_BF if means is None else means.contiguous(), query,
        0.0 if norm is None else norm.eps, *key_PnTh.stride()[:3],
    )  # fmt: skip
    heads, width = (1 << (least - 1).bit_length() for least in (n * (per_key + 2), h))
    options = {
        "N": n, "R": per_key, "WIDTH": h, "HEADS": heads, "H": width,
        "NORM": norm is not None, "BY_HEAD": norm is not None and norm.by_head, "GIVEN": means is not None,
        "num_warps": max(4, min(16, heads * width // 1024)),
    }  # fmt: skip
    return Call(heads_kernel, (batch,), arguments, options, (query,))
