"""The row kernels in Triton: on blocks of fp32 products that lie in memory. Contract: `types.Kernels`.

One program owns one token's row, or a piece of it; nothing is added to memory by two programs. Statistics read a row
once, gradients read it and write it.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from synpro_kernels.common.launch import Call, ceil_div
from synpro_kernels.ops.linear_logprob.triton_math import LN_2, LOG2_E, gradient, merge
from synpro_kernels.ops.linear_logprob.types import LogitSettings, Stats

_OPTIONS = {"WIDTH": 4096, "num_warps": 8}  # entries of a row that a program holds at once: 16 for each thread


@triton.jit
def merge_kernel(
    block, stride, column, start, maximum, sumexp, weighted, target_logit, count, scale, WIDTH: tl.constexpr
):
    """Fold one token's row of `count` products into its statistics."""
    row = tl.program_id(0)
    values = block + row.to(tl.int64) * stride
    one = row + tl.arange(0, 1)  # the statistics of a tile of one token
    state = (tl.load(maximum + one) * LOG2_E, tl.load(sumexp + one), tl.load(weighted + one) * LOG2_E)
    for at in range(0, count, WIDTH):
        columns = at + tl.arange(0, WIDTH)
        # Masked entries arrive as -inf, which `merge` counts as nothing; a positive scale keeps them so.
        z = tl.load(values + columns, mask=columns < count, other=-float("inf")) * scale
        state = merge(z[None, :], state[0], state[1], state[2], True)
    tl.store(maximum + one, state[0] * LN_2)
    tl.store(sumexp + one, state[1])
    tl.store(weighted + one, state[2] * LN_2)
    place = tl.load(column + row) - start
    if (place >= 0) & (place < count):
        # A plain store: of all blocks and shards' columns one at most is the target, and the start is 0.
        tl.store(target_logit + row, tl.load(values + place) * scale * LN_2)


@triton.jit
def differentiate_kernel(
    block, stride, out, out_stride, coefficients, column, start, count, scale,
    HAS_SOFTCAP: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Turn WIDTH products of one token into dL/dproduct."""
    row = tl.program_id(0)
    columns = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    place = tl.load(column + row) - start
    values = tl.load(block + row.to(tl.int64) * stride + columns, mask=columns < count, other=0.0)
    rows = row + tl.arange(0, 1)
    dz = gradient(values[None, :], (columns == place)[None, :], coefficients, rows, rows >= 0, scale, HAS_SOFTCAP)
    to = out + row.to(tl.int64) * out_stride + columns
    tl.store(to[None, :], dz.to(out.dtype.element_ty), mask=(columns < count)[None, :])


def merge_(block_CB: Tensor, stats: Stats, column_C: Tensor, start: int, settings: LogitSettings) -> None:
    """Fold a block's logits into `stats`, in place."""
    # A token's statistics belong to one program, so they are updated in place without atomics.
    merge_call(block_CB, stats, column_C, start, settings).launch()


def differentiate(
    block_CB: Tensor, coefficients_C5: Tensor, column_C: Tensor, start: int, settings: LogitSettings, dtype: torch.dtype
) -> Tensor:
    """dL/dproduct of a block as `dtype`: in its own memory where it has that dtype, else in new memory."""
    return differentiate_call(block_CB, coefficients_C5, column_C, start, settings, dtype).launch()[0]


def merge_call(block_CB: Tensor, stats: Stats, column_C: Tensor, start: int, settings: LogitSettings) -> Call:
    """The launch that `merge_` makes."""
    tokens, count = block_CB.shape
    arguments = block_CB, block_CB.stride(0), column_C, start, *stats, count, settings.scale_in_bits
    return Call(merge_kernel, (tokens,), arguments, _OPTIONS, tuple(stats))


def differentiate_call(
    block_CB: Tensor, coefficients_C5: Tensor, column_C: Tensor, start: int, settings: LogitSettings, dtype: torch.dtype
) -> Call:
    """The launch that `differentiate` makes."""
    tokens, count = block_CB.shape
    # In place is safe although programs share a row: each reads the WIDTH entries that it writes, and no others.
    out_CB = block_CB if block_CB.dtype == dtype else torch.empty_like(block_CB, dtype=dtype)
    arguments = (
        block_CB, block_CB.stride(0), out_CB, out_CB.stride(0), coefficients_C5, column_C, start, count,
        settings.scale_in_bits,
    )  # fmt: skip
    options = _OPTIONS | {"HAS_SOFTCAP": settings.softcap is not None}
    grid = tokens, ceil_div(count, _OPTIONS["WIDTH"])
    return Call(differentiate_kernel, grid, arguments, options, (out_CB,))
