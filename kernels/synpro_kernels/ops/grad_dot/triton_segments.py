"""The segment sum on CUDA: every program adds its span of tokens for its block of segments, in fp64; no atomics.

Cost: one comparison for each (token, segment) pair, which stays far below the matrix product that made the values.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from synpro_kernels.common.launch import Call, ceil_div
from synpro_kernels.ops.grad_dot.validate import nan_where_out_of_range

_SEGMENTS = 32  # of a program
_TOKENS = 64  # at a time
_SPAN = 1024  # tokens of a program: a constant, so that no property of the GPU decides in which order is added


@triton.jit
def segment_sum_kernel(
    values, ids, partials, tokens, segments, stride_values,
    SPAN: tl.constexpr, BS: tl.constexpr, BT: tl.constexpr,
):  # fmt: skip
    """BS segments' sums over SPAN tokens, into row `span` of the [K, spans, S] partials."""
    span, k = tl.program_id(1), tl.program_id(2)
    wanted = tl.program_id(0) * BS + tl.arange(0, BS)
    # One sum a segment and lane; lanes are added after the loop.
    total = tl.zeros((BS, BT), tl.float64)
    # 64 bits, for K T may pass 2^31 where one direction's T does not.
    row = values + k.to(tl.int64) * stride_values
    for start in range(0, SPAN, BT):
        # Past the end the owner reads as -1, which no wanted segment is: the value needs no second test.
        at = span.to(tl.int64) * SPAN + start + tl.arange(0, BT)
        owner = tl.load(ids + at, mask=at < tokens, other=-1)
        # fp64 before the first addition: then neither lanes nor spans show in the fp32 result.
        value = tl.load(row + at, mask=at < tokens, other=0.0).to(tl.float64)
        total += tl.where(owner[None, :] == wanted[:, None], value[None, :], 0.0)
    to = (k.to(tl.int64) * tl.num_programs(1) + span) * segments + wanted
    # An id out of range may have met a lane past the last segment; it is not stored, and the caller turns all to NaN.
    tl.store(partials + to, tl.sum(total, 1), mask=wanted < segments)


def segment_sum(values_KT: Tensor, ids_T: Tensor, segments: int) -> Tensor:
    """Sum fp32 values [K, T] by segment to fp32 [K, S]; all NaN where an id is out of range."""
    if values_KT.shape[1] == 0 or segments == 0:
        sums_KS = values_KT.new_zeros(values_KT.shape[0], segments)
    else:
        (partials,) = segment_sum_call(values_KT, ids_T, segments).launch()
        sums_KS = partials.sum(1).to(values_KT.dtype)
    return nan_where_out_of_range(sums_KS, ids_T, segments)


def segment_sum_call(values_KT: Tensor, ids_T: Tensor, segments: int) -> Call:
    """The launch that fills [K, spans, S] in fp64."""
    values_KT = values_KT if values_KT.stride(1) == 1 else values_KT.contiguous()
    directions, tokens = values_KT.shape
    spans = ceil_div(tokens, _SPAN)
    partials = values_KT.new_empty(directions, spans, segments, dtype=torch.float64)
    # Spans in the second dimension end at 65,535: 67 million tokens.
    grid = ceil_div(segments, _SEGMENTS), spans, directions
    arguments = values_KT, ids_T.contiguous(), partials, tokens, segments, values_KT.stride(0)
    return Call(segment_sum_kernel, grid, arguments, {"SPAN": _SPAN, "BS": _SEGMENTS, "BT": _TOKENS}, (partials,))
