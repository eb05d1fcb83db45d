"""The matrix product and what follows it in one Triton kernel: statistics, or the gradient of a block of logits.

The logits exist only as a tile in registers. Deterministic: each program writes its own part, and parts are merged in
a fixed order. Operands are read through pointers, or through tensor descriptors (TMA) where the hardware has them.
"""

import os
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from synpro_kernels.common.launch import Call, Tile, capability_of, ceil_div
from synpro_kernels.ops.linear_logprob.tiles import tile_for, tiles_each_for
from synpro_kernels.ops.linear_logprob.triton_math import LN_2, capped, gradient, merge
from synpro_kernels.ops.linear_logprob.types import Shard, Stats


@triton.jit
def tile_products(
    hidden, weight, row0, col0, tokens, vocab, stride_h, stride_w,
    WIDTH: tl.constexpr, DESCRIPTOR: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """hidden[row0 : row0 + BM] weight[col0 : col0 + BN]^T, fp32. Rows beyond the end repeat row 0 or are 0."""
    rows = row0 + tl.arange(0, BM)
    cols = col0 + tl.arange(0, BN)
    acc = tl.zeros((BM, BN), tl.float32)
    if DESCRIPTOR:
        # "ieee": Triton's default for fp32 operands is tf32, with 10 bits of mantissa. Halves are not affected.
        for k in range(0, WIDTH, BK):
            acc = tl.dot(hidden.load([row0, k]), weight.load([col0, k]).T, acc, input_precision="ieee")
    else:
        # Rows beyond the end read row 0 instead of being masked: the loop's loads then need no mask over rows, and what
        # comes of them is not stored.
        ks = tl.arange(0, BK)
        # 64 bits: a vocabulary of 262,144 rows of 8,192 is 2^31 entries.
        h_ptr = hidden + tl.where(rows < tokens, rows, 0).to(tl.int64)[:, None] * stride_h + ks[None, :]
        w_ptr = weight + tl.where(cols < vocab, cols, 0).to(tl.int64)[:, None] * stride_w + ks[None, :]
        for k in range(0, WIDTH, BK):
            # Decided at compilation, WIDTH being a constant: real widths load without masks, for a compilation each.
            if WIDTH % BK == 0:
                a = tl.load(h_ptr + k)
                b = tl.load(w_ptr + k)
            else:
                a = tl.load(h_ptr + k, mask=ks[None, :] < WIDTH - k, other=0.0)
                b = tl.load(w_ptr + k, mask=ks[None, :] < WIDTH - k, other=0.0)
            acc = tl.dot(a, b.T, acc, input_precision="ieee")
    return acc


@triton.jit
def stats_kernel(
    hidden, weight, bias, column, maximum, sumexp, weighted, target_logit,
    tokens, vocab, stride_h, stride_w, scale, inverse_softcap, tiles_each,
    WIDTH: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_SOFTCAP: tl.constexpr, ENTROPY: tl.constexpr,
    DESCRIPTOR: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """Statistics of BM tokens over `tiles_each` tiles of the vocabulary, into row `split` of [splits, T] outputs."""
    row_tiles = tl.cdiv(tokens, BM)
    # Neighbouring programs read the same part of the weight at the same time, so it comes from memory once.
    row_tile = tl.program_id(0) % row_tiles
    split = tl.program_id(0) // row_tiles
    rows = row_tile * BM + tl.arange(0, BM)
    in_range = rows < tokens
    # int64 would cost the epilogue 3 to 8 registers. The test against the vocabulary is made here, once, and not in the
    # tile, where it cost 2 spills on sm_100 (docs/kernels.md).
    target = tl.load(column + rows, mask=in_range, other=-1).to(tl.int32)
    target = tl.where(target < vocab, target, -1)  # another shard's: never the column of this one's last, ragged tile
    m = tl.full((BM,), -float("inf"), tl.float32)
    s = tl.zeros((BM,), tl.float32)
    u = tl.zeros((BM,), tl.float32)
    at_target = tl.zeros((BM,), tl.float32)
    last = tl.minimum((split + 1) * tiles_each, tl.cdiv(vocab, BN))
    for tile in range(split * tiles_each, last):
        cols = tile * BN + tl.arange(0, BN)
        z = tile_products(
            hidden, weight, row_tile * BM, tile * BN, tokens, vocab, stride_h, stride_w, WIDTH, DESCRIPTOR, BM, BN, BK
        )
        bias_row = tl.load(bias + cols, mask=cols < vocab, other=0.0).to(tl.float32) if HAS_BIAS else 0.0
        z = capped(z, bias_row, inverse_softcap, HAS_BIAS, HAS_SOFTCAP) * scale
        at_target += tl.sum(tl.where(cols[None, :] == target[:, None], z, 0.0), 1)
        # Columns past the end hold the product with row 0 (pointers) or 0 (descriptors): neither may count as a logit.
        z = tl.where(cols[None, :] < vocab, z, -float("inf"))
        m, s, u = merge(z, m, s, u, ENTROPY)
    to = split.to(tl.int64) * tokens + rows
    tl.store(maximum + to, m * LN_2, mask=in_range)
    tl.store(sumexp + to, s, mask=in_range)
    tl.store(weighted + to, u * LN_2, mask=in_range)
    tl.store(target_logit + to, at_target * LN_2, mask=in_range)


@triton.jit
def gradient_kernel(
    hidden, weight, bias, column, coefficients, out, out_stride,
    tokens, vocab, start, stride_h, stride_w, scale, inverse_softcap,
    WIDTH: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_SOFTCAP: tl.constexpr,
    DESCRIPTOR: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """One tile of dL/dproduct of a block of the vocabulary whose first column in the shard is `start`."""
    row_tiles = tl.cdiv(tokens, BM)
    # Row tiles fastest, as in `stats_kernel`: neighbours multiply with the same rows of the weight.
    row0 = (tl.program_id(0) % row_tiles) * BM
    col0 = (tl.program_id(0) // row_tiles) * BN
    rows = row0 + tl.arange(0, BM)
    in_range = rows < tokens
    values = tile_products(hidden, weight, row0, col0, tokens, vocab, stride_h, stride_w, WIDTH, DESCRIPTOR, BM, BN, BK)
    # Relative to this block; a target of another block may equal a column past the end, which is not stored.
    place = (tl.load(column + rows, mask=in_range, other=-1) - start).to(tl.int32)
    # In two halves: a whole tile of gradients beside a whole tile of products cost 42 to 57 spill loads on sm_90.
    left, right = values.reshape(BM, 2, BN // 2).permute(0, 2, 1).split()
    for half in tl.static_range(2):
        cols = col0 + half * (BN // 2) + tl.arange(0, BN // 2)
        bias_row = tl.load(bias + cols, mask=cols < vocab, other=0.0).to(tl.float32) if HAS_BIAS else 0.0
        z = capped(left if half == 0 else right, bias_row, inverse_softcap, HAS_BIAS, HAS_SOFTCAP)
        is_target = cols[None, :] == place[:, None]
        dz = gradient(z, is_target, coefficients, rows, in_range, scale, HAS_SOFTCAP)
        # 64 bits once for the corner, 32 within the tile: 64-bit offsets for every entry were most of those spills.
        corner = out + row0.to(tl.int64) * out_stride + col0 + half * (BN // 2)
        to = corner + tl.arange(0, BM)[:, None] * out_stride + tl.arange(0, BN // 2)[None, :]
        tl.store(to, dz.to(out.dtype.element_ty), mask=in_range[:, None] & (cols[None, :] < vocab))


def stats(shard: Shard, *, entropy: bool) -> Stats:
    """What the shard knows of each token's logits (`types.Stats`), in one kernel and a merge of [splits, T] parts.

    Environment: SYNPRO_PERSISTENT is a name of `gluon_forward.FORMS`, which then makes the parts where it can.
    """
    capability, processors = capability_of(shard.hidden_TH), _processors(shard.hidden_TH)
    if form := os.environ.get("SYNPRO_PERSISTENT"):
        from synpro_kernels.ops.linear_logprob import gluon_forward  # Triton's experimental part: where it is asked for

        warps = gluon_forward.named(form)  # a slip is told where another kernel serves, too
        if gluon_forward.takes(shard, capability) and _fits_descriptors(shard.hidden_TH, shard.weight_VH, capability):
            call = gluon_forward.stats_call(shard, entropy=entropy, processors=processors, warps=warps)
            return _merge_parts(Stats(*call.launch()))
    call = stats_call(shard, entropy=entropy, capability=capability, processors=processors)
    return _merge_parts(Stats(*call.launch()))


def differentiate(
    part: Shard, weight_BH: Tensor, bias_B: Tensor | None, coefficients_C5: Tensor, start: int, out_CB: Tensor
) -> Tensor:
    """Write dL/dproduct of a block to `out_CB`, in its dtype, from logits computed again."""
    capability = capability_of(part.hidden_TH)
    gradient_call(part, weight_BH, bias_B, coefficients_C5, start, out_CB, capability=capability).launch()
    return out_CB


def stats_call(
    shard: Shard, *, entropy: bool, capability: int, processors: int, descriptor: bool | None = None
) -> Call:
    """The launch that `stats` makes on a device of `processors` multiprocessors; `descriptor` None chooses."""
    hidden_TH, weight_VH = shard.hidden_TH, shard.weight_VH
    descriptor = _fits_descriptors(hidden_TH, weight_VH, capability) if descriptor is None else descriptor
    tile = _tile(shard, shard.bias_V, capability)
    row_tiles, column_tiles = ceil_div(shard.tokens, tile.BM), ceil_div(shard.vocab, tile.BN)
    tiles_each = tiles_each_for(row_tiles, column_tiles, processors)
    splits = ceil_div(column_tiles, tiles_each)
    # 16 T bytes a split, written once each: programs share no word of memory, so there are no atomics to order.
    parts = hidden_TH.new_empty((4, splits, shard.tokens), dtype=torch.float32).unbind(0)
    hidden, weight, options = _operands(hidden_TH, weight_VH, tile, descriptor)
    options |= _logit_options(shard, shard.bias_V) | {"tiles_each": tiles_each, "ENTROPY": entropy}
    arguments = hidden, weight, shard.bias_V, shard.column_T, *parts, shard.tokens, shard.vocab
    return Call(stats_kernel, (row_tiles * splits,), arguments, options, parts)


def gradient_call(
    part: Shard,
    weight_BH: Tensor,
    bias_B: Tensor | None,
    coefficients_C5: Tensor,
    start: int,
    out_CB: Tensor,
    *,
    capability: int,
    descriptor: bool | None = None,
) -> Call:
    """The launch that `differentiate` makes."""
    hidden_TH = part.hidden_TH
    descriptor = _fits_descriptors(hidden_TH, weight_BH, capability) if descriptor is None else descriptor
    tile = _tile(part, bias_B, capability)
    hidden, weight, options = _operands(hidden_TH, weight_BH, tile, descriptor)
    options |= _logit_options(part, bias_B)
    arguments = (
        hidden, weight, bias_B, part.column_T, coefficients_C5, out_CB, out_CB.stride(0),
        part.tokens, len(weight_BH), start,
    )  # fmt: skip
    # A program a tile: gradients are written once and need no running state, unlike the statistics.
    # In one dimension, since the grid's others end at 65,535 programs and its order decides what is in L2 together.
    programs = ceil_div(part.tokens, tile.BM) * ceil_div(len(weight_BH), tile.BN)
    return Call(gradient_kernel, (programs,), arguments, options, (out_CB,))


def _tile(shard: Shard, bias_B: Tensor | None, capability: int) -> Tile:
    # 64 is the tiles' BK: other widths load under masks, which take registers.
    plain = bias_B is None and shard.settings.softcap is None and shard.hidden_TH.shape[1] % 64 == 0
    return tile_for(capability, shard.hidden_TH.dtype, shard.tokens, plain=plain)


def _operands(hidden_TH: Tensor, weight_BH: Tensor, tile: Tile, descriptor: bool) -> tuple[Any, Any, dict[str, Any]]:
    """How a kernel reads hidden and weight: through tensor descriptors or pointers."""
    options = {"DESCRIPTOR": descriptor, "WIDTH": hidden_TH.shape[1], **tile._asdict()}
    options |= {"stride_h": hidden_TH.stride(0), "stride_w": weight_BH.stride(0)}
    if not descriptor:
        return hidden_TH, weight_BH, options
    hidden = TensorDescriptor.from_tensor(hidden_TH, [tile.BM, tile.BK])
    return hidden, TensorDescriptor.from_tensor(weight_BH, [tile.BN, tile.BK]), options


def _fits_descriptors(hidden_TH: Tensor, weight_BH: Tensor, capability: int) -> bool:
    """Whether descriptors can be used: from sm_90 on, where rows lie on 16 bytes."""
    tensors = hidden_TH, weight_BH
    # TMA takes no other alignment; a slice of a wider tensor may lie otherwise, and is read through pointers.
    return capability >= 90 and all(
        t.data_ptr() % 16 == 0 and t.stride(0) * t.element_size() % 16 == 0 for t in tensors
    )


def _logit_options(shard: Shard, bias_B: Tensor | None) -> dict[str, Any]:
    softcap = shard.settings.softcap
    return {
        "scale": shard.settings.scale_in_bits,
        "inverse_softcap": 1.0 / softcap if softcap else 0.0,
        "HAS_BIAS": bias_B is not None,
        "HAS_SOFTCAP": softcap is not None,
    }


def _processors(tensor: Tensor) -> int:
    """Multiprocessors of the tensor's device; the interpreter has one."""
    return torch.cuda.get_device_properties(tensor.device).multi_processor_count if tensor.is_cuda else 1


def _merge_parts(parts: Stats) -> Stats:
    """Fold [splits, T] statistics into [T]: in the order of the splits, so that results repeat bit for bit."""
    top = parts.maximum.amax(0)
    # A split may be masked whole (a bias of -inf): `relative_to` makes that an empty sum, not NaN.
    sumexp, weighted = parts.relative_to(top)
    return Stats(top, sumexp.sum(0), weighted.sum(0), parts.target_logit.sum(0))
