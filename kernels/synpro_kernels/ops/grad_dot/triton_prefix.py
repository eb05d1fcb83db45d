"""The weight-gradient GEMM with scores on CUDA: a tile of the gradient is built segment by segment in registers.

Each segment's part of the tile is dotted with V before it joins the rest, so nothing cancels and no part leaves the
registers. One program owns a tile of the accumulator; its shares of the scores go to [tiles, K, S] and are added in a
fixed order afterwards. Half-precision operands only. T': tokens after segments were filled up to whole blocks of BK.
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from synpro_kernels.common.launch import Call, aligned, capability_of, ceil_div
from synpro_kernels.ops.grad_dot.tiles import prefix_tile


@triton.jit
def prefix_kernel(
    x, grad, direction, boundaries, accumulator, shares, segments, inputs, outputs,
    stride_x, stride_grad, stride_k, stride_direction, directions, DESCRIPTOR: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """accumulator[BM outputs, BN inputs] += sum over tokens of grad_t x_t^T, with each segment's dots on the way."""
    place = tl.program_id(0)
    col_tiles = tl.cdiv(inputs, BN)
    out0, in0 = place // col_tiles * BM, place % col_tiles * BN
    outs, ins, ks = out0 + tl.arange(0, BM), in0 + tl.arange(0, BN), tl.arange(0, BK)
    # No mask over tokens: every segment is whole blocks by now (`_whole_blocks`).
    in_outs, in_ins = (outs < outputs)[:, None], (ins < inputs)[None, :]
    # The accumulator's tile is read and written once, at the end, however many segments there are; each segment costs a
    # pass over the directions' tiles.
    total = tl.zeros((BM, BN), tl.float32)
    for i in range(segments):
        # Beside `total`: read off that, a score would be a difference of two large numbers (README.md).
        part = tl.zeros((BM, BN), tl.float32)
        for t in range(tl.load(boundaries + i), tl.load(boundaries + i + 1), BK):
            if DESCRIPTOR:
                g = grad.load([t, out0]).T
                h = x.load([t, in0])
            else:
                # 64 bits: tokens times a wide layer's stride pass 2^31 (65,536 tokens of width 32,768).
                rows = (t + ks).to(tl.int64)
                g = tl.load(grad + rows[None, :] * stride_grad + outs[:, None], mask=in_outs, other=0.0)
                h = tl.load(x + rows[:, None] * stride_x + ins[None, :], mask=in_ins, other=0.0)
            part = tl.dot(g, h, part)
        # Moved on direction by direction: k x stride_k would pass 2^31 from ten of an 8,192 x 28,672 weight on.
        here = direction
        # Directions within: the segment's part is in registers now, so one more direction costs no product.
        for k in range(directions):
            if DESCRIPTOR:
                v = direction.load([k, out0, in0]).reshape(BM, BN)
            else:
                v_row = here + outs.to(tl.int64)[:, None] * stride_direction
                v = tl.load(v_row + ins[None, :], mask=in_outs & in_ins, other=0.0)
                here += stride_k
            # A place for each program: nothing is added to memory by two of them, so the bits repeat.
            to_share = (place.to(tl.int64) * directions + k) * segments + i
            # One sum over both dimensions: Triton 3.6 fails to compile two for sm_100.
            tl.store(shares + to_share, tl.sum(part * v.to(tl.float32)))
        total += part
    # Its rows are `inputs` apart, unlike those of x, which may have been padded: validation wants it contiguous.
    to = accumulator + outs.to(tl.int64)[:, None] * inputs + ins[None, :]
    # Read, add, write without atomics: no other program has this tile, and an earlier micro-batch's kernel has ended.
    tl.store(to, tl.load(to, mask=in_outs & in_ins, other=0.0) + total, mask=in_outs & in_ins)


def grad_dot_prefix(
    x_TI: Tensor, grad_TO: Tensor, direction_KOI: Tensor, boundaries: Sequence[int], accumulator_OI: Tensor
) -> Tensor:
    """Return scores [K, S], fp32, and add each segment's gradient to the accumulator."""
    if x_TI.shape[0] == 0:
        return accumulator_OI.new_zeros(direction_KOI.shape[0], len(boundaries) - 1)
    tensors = x_TI, grad_TO, direction_KOI, boundaries, accumulator_OI
    # A score is a sum over all tiles of the weight: in fp64, as in `segments`.
    (shares,) = prefix_call(*tensors, capability=capability_of(x_TI)).launch()
    return shares.sum(0, dtype=torch.float64).float()


def prefix_call(
    x_TI: Tensor, grad_TO: Tensor, direction_KOI: Tensor, boundaries: Sequence[int], accumulator_OI: Tensor, *,
    capability: int, descriptor: bool | None = None,
) -> Call:  # fmt: skip
    """The launch that fills [tiles, K, S] and updates the accumulator; `descriptor` None chooses by capability."""
    tile = prefix_tile(capability)
    (outputs, inputs), directions, segments = accumulator_OI.shape, len(direction_KOI), len(boundaries) - 1
    x, grad, bounds = _whole_blocks(x_TI, grad_TO, boundaries, tile.BK)
    # The direction is copied where its width is odd, as large as the weight: real layers are multiples of 16.
    x, grad, direction = aligned(x), aligned(grad), aligned(direction_KOI)
    programs = ceil_div(outputs, tile.BM) * ceil_div(inputs, tile.BN)
    shares = accumulator_OI.new_empty(programs, directions, segments)
    if descriptor is None:
        descriptor = capability >= 90
    sources = x, grad, direction
    if descriptor:
        blocks = [tile.BK, tile.BN], [tile.BK, tile.BM], [1, tile.BM, tile.BN]
        sources = tuple(map(TensorDescriptor.from_tensor, sources, blocks))
    sizes = segments, inputs, outputs, x.stride(0), grad.stride(0), direction.stride(0), direction.stride(1), directions
    options = {"DESCRIPTOR": descriptor, **tile._asdict()}
    return Call(prefix_kernel, (programs,), (*sources, bounds, accumulator_OI, shares, *sizes), options, (shares,))


def _whole_blocks(
    x_TI: Tensor, grad_TO: Tensor, boundaries: Sequence[int], block: int
) -> tuple[Tensor, Tensor, Tensor]:
    """(x [T', I], grad_out [T', O], boundaries): every segment starts and ends on a whole block.

    Segments of such lengths, as training on windows has, are taken as they are; others are copied, filled with zeros.
    """
    # The kernel steps by whole blocks and masks no tokens: a ragged end would reach into the next segment. Tokens of
    # zeros add nothing to a gradient.
    # Built on the host, where the offsets are anyway: looking at them on the device would make the host wait.
    bounds = torch.tensor(boundaries, dtype=torch.int32)
    if bool((bounds % block == 0).all()):
        return x_TI, grad_TO, bounds.to(x_TI.device, non_blocking=True)
    lengths = bounds.diff()
    filled = torch.zeros_like(bounds)
    filled[1:] = (-(-lengths // block) * block).cumsum(0)
    shift_T = (filled - bounds)[:-1].long().repeat_interleave(lengths.long())
    place_T = (torch.arange(x_TI.shape[0]) + shift_T).to(x_TI.device, non_blocking=True)
    tokens = int(filled[-1])
    padded = [t.new_zeros(tokens, t.shape[1]).index_copy_(0, place_T, t) for t in (x_TI, grad_TO)]
    return padded[0], padded[1], filled.to(x_TI.device, non_blocking=True)
