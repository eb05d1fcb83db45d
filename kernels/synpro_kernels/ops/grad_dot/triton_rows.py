"""b_t . (V x_t) on CUDA in one Triton kernel: a matrix product whose tile meets the other operand in registers.

Each program writes its tile's share of its rows to [K, column tiles, T]; the tiles are added in a fixed order
afterwards, without atomics. Half precision only.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from synpro_kernels.common.launch import Call, aligned, capability_of, ceil_div
from synpro_kernels.common.triton_products import tile_by_descriptor, tile_by_pointer
from synpro_kernels.ops.grad_dot.tiles import row_tile

# Rows of tiles that neighbouring programs share: about one wave of a large GPU then reads a square of the operands.
_GROUP = 8


@triton.jit
def row_dot_kernel(
    left, right, other, partials, tokens, width, reduction, stride_left, stride_k, stride_right, stride_other,
    NR: tl.constexpr, DESCRIPTOR: tl.constexpr, EVEN: tl.constexpr, GROUP: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """One tile of left right_k^T (right_k unless NR), times the same tile of `other`, summed along its rows."""
    # Without it ptxas 12.8 waits for each wgmma before it issues the next (README.md).
    tl.assume(reduction > 0)
    col_tiles = tl.cdiv(width, BN)
    row_tiles = tl.cdiv(tokens, BM)
    place = tl.program_id(0)
    row_tile, col_tile = tl.swizzle2d(place // col_tiles, place % col_tiles, row_tiles, col_tiles, GROUP)
    k = tl.program_id(1)
    row0, col0 = row_tile * BM, col_tile * BN
    rows = row0 + tl.arange(0, BM)
    cols = col0 + tl.arange(0, BN)
    if DESCRIPTOR:
        acc = tile_by_descriptor(left, right, k, row0, col0, reduction, NR, BM, BN, BK)
        b = other.load([row0, col0])
    else:
        right_k = right + k.to(tl.int64) * stride_k
        acc = tile_by_pointer(
            left, right_k, row0, col0, tokens, width, reduction, stride_left, stride_right, NR, EVEN, BM, BN, BK
        )
        # A row past the end would read past the tensor; its dot is not stored.
        safe_rows = tl.minimum(rows, tokens - 1).to(tl.int64)
        b = tl.load(other + safe_rows[:, None] * stride_other + cols[None, :], mask=cols[None, :] < width, other=0.0)
    # The tile of the product ends here, in registers: [T, width] of products is never written.
    # Chosen, not multiplied by 0: a column outside may hold what an infinite entry of V made of it.
    dots = tl.sum(tl.where(cols[None, :] < width, acc * b.to(tl.float32), 0.0), 1)
    # 64 bits once, for the tile's row of the partials; the offsets within stay 32.
    to = (k * col_tiles + col_tile).to(tl.int64) * tokens + rows
    tl.store(partials + to, dots, mask=rows < tokens)


def grad_dot_tokens(
    x_TI: Tensor, grad_TO: Tensor, direction_KOI: Tensor, scale_KO: Tensor | None, over_inputs: bool
) -> Tensor:
    """Return b_t . (V x_t) for every direction and token: [K, T], fp32."""
    if scale_KO is not None:  # one layer's copy: a decode inside the main loop would keep the tensor cores waiting
        direction_KOI = (direction_KOI.float() * scale_KO[..., None]).to(x_TI.dtype)
    if x_TI.shape[0] == 0:
        return x_TI.new_zeros(direction_KOI.shape[0], 0, dtype=torch.float32)
    # One fp32 number a row and tile is written, 4 K T min(I, O) / BN bytes in all; this sum has a fixed order.
    (partials,) = row_dot_call(x_TI, grad_TO, direction_KOI, over_inputs, capability=capability_of(x_TI)).launch()
    return partials.sum(1)


def row_dot_call(
    x_TI: Tensor, grad_TO: Tensor, direction_KOI: Tensor, over_inputs: bool, *, capability: int,
    descriptor: bool | None = None,
) -> Call:  # fmt: skip
    """The launch that fills [K, column tiles, T]; `descriptor` None chooses by capability."""
    left, other = (x_TI, grad_TO) if over_inputs else (grad_TO, x_TI)
    # `left` may have gained columns, which are contracted: the direction's rows must reach as far, with zeros.
    left, right, other = aligned(left), aligned(direction_KOI, rows_too=True), aligned(other)
    directions, (tokens, reduction), width = right.shape[0], left.shape, other.shape[1]
    tile = row_tile(capability, tokens, width)
    grid = ceil_div(tokens, tile.BM) * ceil_div(width, tile.BN), directions
    # 4 bytes a row, tile and direction: at BN 256 a 256th of what the products would take in fp32.
    partials = left.new_empty(directions, ceil_div(width, tile.BN), tokens, dtype=torch.float32)
    if descriptor is None:
        descriptor = capability >= 90
    sources = (left, right, other)
    if descriptor:
        right_block = [1, tile.BN, tile.BK] if over_inputs else [1, tile.BK, tile.BN]
        blocks = [tile.BM, tile.BK], right_block, [tile.BM, tile.BN]
        sources = tuple(map(TensorDescriptor.from_tensor, sources, blocks))
    sizes = tokens, width, reduction, left.stride(0), right.stride(0), right.stride(1), other.stride(0)
    options = {
        "NR": over_inputs,
        "DESCRIPTOR": descriptor,
        "EVEN": descriptor or reduction % tile.BK == 0,
        "GROUP": _GROUP,
    }
    return Call(row_dot_kernel, grid, (*sources, partials, *sizes), options | tile._asdict(), (partials,))
