"""The segment sum: [K, T] token values to [K, S] by id, in fp64, without atomics.

fp64, because then neither the order of the tokens nor who shares the batch reaches the fp32 result (but for a tie in
the last place about once in 10^8), and shares that cancel keep their digits.
"""

import math

import torch
from torch import Tensor

from synpro_kernels.common.arithmetic import precise_dtype
from synpro_kernels.ops.grad_dot.dispatch import SEGMENT_SUM
from synpro_kernels.ops.grad_dot.types import GradDots
from synpro_kernels.ops.grad_dot.validate import check_ids


def by_segment(
    dots_KT: Tensor, segment_ids: Tensor, segments: int, *, several: bool, per_token: bool
) -> Tensor | GradDots:
    """Turn token dots into what the public functions return; `several`: K directions were given, not just one."""
    ids_T = segment_ids.reshape(-1)
    # Before rows of no segment are cleared: the sum leaves them out by id, and clearing first costs a copy of [K, T].
    scores_KS = segment_sum(dots_KT, ids_T, segments=segments)
    scores = scores_KS if several else scores_KS[0]
    if not per_token:
        return scores
    # Rows of no segment may hold NaN, and their dots then do too.
    tokens = dots_KT.masked_fill(ids_T < 0, 0.0).view(len(dots_KT), *segment_ids.shape)
    return GradDots(scores, tokens if several else tokens[0])


def segment_sum(values: Tensor, segment_ids: Tensor, *, segments: int) -> Tensor:
    """Sum token values by segment; the same bits on every run.

    Args:
        values: [..., T], floating. A token with id -1 may hold anything, NaN included.
        segment_ids: [T], int32 or int64, in [-1, segments), in any order.
        segments: the number of segments; one that has no token sums to 0.

    Returns:
        [..., segments], fp32 (fp64 for fp64 values).

    Raises:
        ValueError: naming the argument. Off the CPU an id out of range makes every sum NaN instead: the host need
            not wait.

    """
    if values.dim() < 1 or not values.is_floating_point():
        raise ValueError(f"values: expected floating [..., T], got {values.dtype} {tuple(values.shape)}")
    check_ids(segment_ids, segments, values.shape[-1:], values.device)
    # math.prod, not -1: torch cannot infer a dimension of a tensor that has no token.
    sums_KS = _segment_sum(values.reshape(math.prod(values.shape[:-1]), values.shape[-1]), segment_ids, segments)
    return sums_KS.view(*values.shape[:-1], segments)


@torch.library.custom_op("synpro::segment_sum", mutates_args=())
def _segment_sum(values_KT: Tensor, ids_T: Tensor, segments: int) -> Tensor:
    return SEGMENT_SUM.kernels(values_KT)(values_KT, ids_T, segments)


@_segment_sum.register_fake
def _(values_KT, ids_T, segments):
    return values_KT.new_empty(values_KT.shape[0], segments, dtype=precise_dtype(values_KT.dtype))
