"""<G_i, G_j> on CUDA: one program for each pair i <= j of segments goes over the tiles of its tokens x tokens.

Works on a copy of the tokens in order of their segment, so that a segment is a range of rows. Half precision only;
deterministic, since each sum belongs to one program.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from synpro_kernels.common.launch import Call, aligned, capability_of, ceil_div
from synpro_kernels.common.triton_products import tile_by_descriptor, tile_by_pointer
from synpro_kernels.ops.grad_dot.tiles import pair_tile
from synpro_kernels.ops.grad_dot.validate import nan_where_out_of_range


@triton.jit
def pair_kernel(
    x, x_right, grad, grad_right, offsets, first, second, sums, tokens, segments, inputs, outputs,
    stride_x, stride_grad, DESCRIPTOR: tl.constexpr, EVEN_I: tl.constexpr, EVEN_O: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """The sum of (x_t . x_s)(b_t . b_s) over tokens t of segment i and s of segment j, to [i, j] and [j, i]."""
    # Without it ptxas 12.8 waits for each wgmma before it issues the next (see `triton_products`).
    tl.assume(inputs > 0)
    tl.assume(outputs > 0)
    # 64 bits: i * segments passes 2^31 from 46,341 segments on.
    i = tl.load(first + tl.program_id(0)).to(tl.int64)
    j = tl.load(second + tl.program_id(0)).to(tl.int64)
    end_i, end_j = tl.load(offsets + i + 1), tl.load(offsets + j + 1)
    # fp64 across tiles: where a segment is cut into them depends on the GPU's tile, and shares that cancel keep digits.
    total = tl.zeros((BM,), tl.float64)
    for m0 in range(tl.load(offsets + i), end_i, BM):
        for n0 in range(tl.load(offsets + j), end_j, BN):
            # Both products of a tile are in registers at once: two accumulators, hence `pair_tile`'s narrower one.
            if DESCRIPTOR:
                tile = tile_by_descriptor(x, x_right, 0, m0, n0, inputs, True, BM, BN, BK)
                tile *= tile_by_descriptor(grad, grad_right, 0, m0, n0, outputs, True, BM, BN, BK)
            else:
                tile = tile_by_pointer(
                    x, x_right, m0, n0, tokens, tokens, inputs, stride_x, stride_x, True, EVEN_I, BM, BN, BK
                )
                tile *= tile_by_pointer(
                    grad,
                    grad_right,
                    m0,
                    n0,
                    tokens,
                    tokens,
                    outputs,
                    stride_grad,
                    stride_grad,
                    True,
                    EVEN_O,
                    BM,
                    BN,
                    BK,
                )
            members = (m0 + tl.arange(0, BM) < end_i)[:, None] & (n0 + tl.arange(0, BN) < end_j)[None, :]
            # Chosen, not multiplied by 0: the rows of another segment may be NaN.
            total += tl.sum(tl.where(members, tile, 0.0), 1).to(tl.float64)
    # One value, written twice: symmetric to the bit, as programs for both (i, j) and (j, i) would not be.
    inner_product = tl.sum(total, 0).to(tl.float32)
    tl.store(sums + i * segments + j, inner_product)
    tl.store(sums + j * segments + i, inner_product)


def pairwise_grad_dot(x_TI: Tensor, grad_TO: Tensor, ids_T: Tensor, segments: int) -> Tensor:
    """Return [S, S], fp32; all NaN where an id is out of range."""
    if segments == 0 or x_TI.shape[0] == 0:
        return x_TI.new_zeros(segments, segments, dtype=torch.float32)
    (sums_SS,) = pair_call(x_TI, grad_TO, ids_T, segments, capability=capability_of(x_TI)).launch()
    return nan_where_out_of_range(sums_SS, ids_T, segments)


def pair_call(
    x_TI: Tensor, grad_TO: Tensor, ids_T: Tensor, segments: int, *, capability: int, descriptor: bool | None = None
) -> Call:
    """The launch that fills [S, S]; `descriptor` None chooses by capability."""
    # Ids of -1 come first, before the first offset, so no program reads their rows.
    order_T = torch.argsort(ids_T, stable=True)
    x_TI, grad_TO = aligned(x_TI[order_T]), aligned(grad_TO[order_T])
    (tokens, inputs), outputs = x_TI.shape, grad_TO.shape[1]
    bounds = torch.arange(segments + 1, device=ids_T.device, dtype=ids_T.dtype)
    offsets = torch.searchsorted(ids_T[order_T], bounds, out_int32=True)
    # A list of pairs rather than a square grid whose lower half returns at once: S^2 / 2 empty programs less.
    first, second = torch.triu_indices(segments, segments, device=ids_T.device, dtype=torch.int32)
    # Uninitialised: every pair has a program, and an empty segment's writes its 0.
    sums_SS = x_TI.new_empty(segments, segments, dtype=torch.float32)
    # By the mean length, which the shapes give: looking at the real ones would make the host wait.
    tile = pair_tile(capability, ceil_div(tokens, segments))
    if descriptor is None:
        descriptor = capability >= 90
    # The right operand's descriptor has a leading k (see `tile_by_descriptor`); pairs have a single one.
    sources = x_TI, x_TI[None], grad_TO, grad_TO[None]
    if descriptor:
        blocks = [[tile.BM, tile.BK], [1, tile.BN, tile.BK]] * 2
        sources = tuple(map(TensorDescriptor.from_tensor, sources, blocks))
    # Descriptors pad with zeros in hardware; by pointer a width that BK does not divide needs masks in the loop.
    even = {f"EVEN_{name}": descriptor or width % tile.BK == 0 for name, width in (("I", inputs), ("O", outputs))}
    sizes = tokens, segments, inputs, outputs, x_TI.stride(0), grad_TO.stride(0)
    arguments = *sources, offsets, first, second, sums_SS, *sizes
    options = {"DESCRIPTOR": descriptor, **even, **tile._asdict()}
    return Call(pair_kernel, (first.shape[0],), arguments, options, (sums_SS,))
