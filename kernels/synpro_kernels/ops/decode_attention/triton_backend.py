"""Attention of decoding on CUDA: a pass over the prompts, a group's members together, and one over new positions.

The first leaves each row's sums over parts of its prompt, the second adds them to the row's own. So a prompt's keys are
read once for the members of a group, and a few long prompts still fill the device. Halves only, fp32 sums. Scores are
in powers of two: `exp2` is what the hardware has.
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from synpro_kernels.common.launch import Call, ceil_div
from synpro_kernels.ops.decode_attention.types import DecodeRows

_LEAST_PART = 128
"""Positions of a prompt that are worth a program of their own."""
_PROGRAMS = 512
"""Wanted of the first pass: about four for each of a large GPU's multiprocessors."""


@triton.jit
def _run(
    query, key, value, pages, start, end, page_stride, stride, scale,
    WIDTH: tl.constexpr, H: tl.constexpr, BQ: tl.constexpr, BT: tl.constexpr, PAGE: tl.constexpr,
):  # fmt: skip
    """Online softmax of `query` [BQ, H] over positions start to end: sums [BQ, H], largest score and weight [BQ].

    `pages` are those of the positions, PAGE in each.
    """
    h = tl.arange(0, H)
    acc = tl.zeros([BQ, H], tl.float32)
    top = tl.full([BQ], float("-inf"), tl.float32)
    total = tl.zeros([BQ], tl.float32)
    for at in range(start, end, BT):
        t = at + tl.arange(0, BT)
        page = tl.load(pages + t // PAGE, mask=t < end, other=0)
        place = page[:, None] * page_stride + (t % PAGE)[:, None] * stride + h[None, :]
        inside = (t < end)[:, None] & (h < WIDTH)[None, :]
        keys = tl.load(key + place, mask=inside, other=0.0)
        score = tl.where((t < end)[None, :], tl.dot(query, keys.trans()) * scale, float("-inf"))
        now = tl.maximum(top, tl.max(score, 1))
        weight = tl.exp2(score - now[:, None])
        # The first block's is exp2(-inf) = 0, since `start` < `end` gives each row a finite score.
        old = tl.exp2(top - now)
        total = total * old + tl.sum(weight, 1)
        values = tl.load(value + place, mask=inside, other=0.0)
        acc = tl.dot(weight.to(values.dtype), values, acc * old[:, None])
        top = now
    return acc, top, total


@triton.jit
def prompt_kernel(
    query, key, value, pages, lengths, row_of_place, place_of_row, out, log_sum,
    members, heads, per_key, rows, part, most_pages, page_stride, head_stride, stride, scale,
    WIDTH: tl.constexpr, H: tl.constexpr, BQ: tl.constexpr, BT: tl.constexpr, PAGE: tl.constexpr,
):  # fmt: skip
    """Part s of group g's prompt and key head k, for BQ of its members' queries: `out` [s, B, n, r, h], `log_sum`."""
    g, k = tl.program_id(0) // heads, tl.program_id(0) % heads
    s, block = tl.program_id(2), tl.program_id(1)
    start = s * part
    length = tl.load(lengths + g).to(tl.int32)
    q = block * BQ + tl.arange(0, BQ)
    here = q < members * per_key
    place = g * members + q // per_key
    row = tl.load(row_of_place + place, mask=here, other=0)
    # An empty place holds some row of another place, whose sums it must not touch.
    here = here & (tl.load(place_of_row + row) == place)
    index = (row * heads + k) * per_key + q % per_key
    h = tl.arange(0, H)
    inside = here[:, None] & (h < WIDTH)[None, :]
    asked = tl.load(query + index[:, None] * WIDTH + h[None, :], mask=inside, other=0.0)
    offset = k * head_stride
    index += s.to(tl.int64) * rows * heads * per_key
    # Called from a kernel it returns; pyright sees that a call from the host raises.
    acc, top, total = _run(  # pyright: ignore[reportGeneralTypeIssues]
        asked, key + offset, value + offset, pages + g * most_pages, start, tl.minimum(start + part, length),
        page_stride, stride, scale, WIDTH, H, BQ, BT, PAGE,
    )  # fmt: skip
    some = total > 0  # a part beyond the prompt's end: nothing to add
    acc = tl.where(some[:, None], acc / tl.where(some, total, 1.0)[:, None], 0.0)
    tl.store(out + index[:, None] * WIDTH + h[None, :], acc, mask=inside)
    tl.store(log_sum + index, tl.where(some, top + tl.log2(tl.where(some, total, 1.0)), float("-inf")), mask=here)


@triton.jit
def new_kernel(
    query, key, value, pages, lengths, slots, prompt_out, prompt_sum, out,
    heads, per_key, rows, parts, fed, most_pages, page_stride, head_stride, stride, scale,
    WIDTH: tl.constexpr, H: tl.constexpr, BQ: tl.constexpr, BT: tl.constexpr, PAGE: tl.constexpr, SLOTS: tl.constexpr,
):  # fmt: skip
    """Row b and key head k over its sequence's new positions, merged with what the prompt's parts gave."""
    b, k = tl.program_id(0), tl.program_id(1)
    q, h = tl.arange(0, BQ), tl.arange(0, H)
    index = (b.to(tl.int64) * heads + k) * per_key + q
    here = q < per_key
    inside = here[:, None] & (h < WIDTH)[None, :]
    asked = tl.load(query + index[:, None] * WIDTH + h[None, :], mask=inside, other=0.0)
    sequence = b.to(tl.int64)
    if SLOTS:
        sequence = tl.load(slots + b) // fed
    offset = k * head_stride
    acc, top, total = _run(  # pyright: ignore[reportGeneralTypeIssues]
        asked, key + offset, value + offset, pages + sequence * most_pages, 0, tl.load(lengths + b).to(tl.int32),
        page_stride, stride, scale, WIDTH, H, BQ, BT, PAGE,
    )  # fmt: skip
    # Index is 64 bits wide, so what is added to it may be large.
    for s in range(parts):
        there = index + s * (rows * heads * per_key)
        other = tl.load(prompt_sum + there, mask=here, other=float("-inf"))
        now = tl.maximum(top, other)
        old, weight = tl.exp2(top - now), tl.exp2(other - now)
        found = tl.load(prompt_out + there[:, None] * WIDTH + h[None, :], mask=inside, other=0.0)
        acc = acc * old[:, None] + found * weight[:, None]
        total = total * old + weight
        top = now
    tl.store(out + index[:, None] * WIDTH + h[None, :], (acc / total[:, None]).to(out.dtype.element_ty), mask=inside)


def decode_attention(query_Bnrh: Tensor, key_PnTh: Tensor, value_PnTh: Tensor, rows: DecodeRows) -> Tensor:
    """Return [B, n, r, h] in the query's dtype."""
    query_Bnrh = query_Bnrh.contiguous()
    call = prompt_call(query_Bnrh, key_PnTh, value_PnTh, rows)
    return new_call(query_Bnrh, key_PnTh, value_PnTh, rows, *call.launch()).launch()[0]


def prompt_call(query_Bnrh: Tensor, key_PnTh: Tensor, value_PnTh: Tensor, rows: DecodeRows) -> Call:
    """The launch that fills fp32 sums [S, B, n, r, h] and their log-sums (base 2) [S, B, n, r] over S parts."""
    batch, heads, per_key, width = query_Bnrh.shape
    groups = len(rows.prompt_length_G)
    queries = rows.members * per_key
    block = max(16, min(64, _power_of_2(queries)))
    programs = groups * heads * ceil_div(queries, block)
    parts = max(1, min(_PROGRAMS // programs, ceil_div(rows.prompt_longest, _LEAST_PART)))
    part = _LEAST_PART * ceil_div(ceil_div(rows.prompt_longest, parts), _LEAST_PART)
    parts = ceil_div(rows.prompt_longest, part)
    out = query_Bnrh.new_empty(parts, *query_Bnrh.shape, dtype=torch.float32)
    log_sum = query_Bnrh.new_empty(parts, batch, heads, per_key, dtype=torch.float32)
    arguments = (
        query_Bnrh, key_PnTh, value_PnTh, rows.prompt_page_GX.contiguous(), rows.prompt_length_G, rows.row_of_place,
        rows.place_of_row_B, out, log_sum,
        rows.members, heads, per_key, batch, part, rows.prompt_page_GX.shape[1], *key_PnTh.stride()[:3], _scale(width),
    )  # fmt: skip
    grid = (groups * heads, ceil_div(queries, block), parts)
    return Call(prompt_kernel, grid, arguments, _options(key_PnTh, block), (out, log_sum))


def new_call(
    query_Bnrh: Tensor, key_PnTh: Tensor, value_PnTh: Tensor, rows: DecodeRows, prompt_out: Tensor, prompt_sum: Tensor
) -> Call:
    """The launch that fills [B, n, r, h]; `prompt_out` and `prompt_sum` are `prompt_call`'s outputs."""
    batch, heads, per_key, width = query_Bnrh.shape
    out, slots = torch.empty_like(query_Bnrh), rows.slots
    arguments = (
        query_Bnrh, key_PnTh, value_PnTh, rows.new_page_SY.contiguous(), rows.new_length_B,
        rows.new_length_B if slots is None else slots.slot_of_row_B, prompt_out, prompt_sum, out,
        heads, per_key, batch, len(prompt_out), 1 if slots is None else slots.fed,
        rows.new_page_SY.shape[1], *key_PnTh.stride()[:3], _scale(width),
    )  # fmt: skip
    block = max(16, _power_of_2(per_key))
    options = _options(key_PnTh, block) | {"SLOTS": slots is not None}
    return Call(new_kernel, (batch, heads), arguments, options, (out,))


def _power_of_2(least: int) -> int:
    return 1 << (least - 1).bit_length()


def _scale(width: int) -> float:
    return math.log2(math.e) / math.sqrt(width)


def _options(key_PnTh: Tensor, block: int) -> dict[str, int]:
    page, width = key_PnTh.shape[2:]
    # Tiles of 16 columns are the least that a product takes.
    whole = max(16, _power_of_2(width))
    return {"WIDTH": width, "H": whole, "BQ": block, "BT": 64, "PAGE": page, "num_warps": 4, "num_stages": 3}
