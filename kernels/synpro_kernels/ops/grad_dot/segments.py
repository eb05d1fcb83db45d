"""The segment sum: [K, T] token values to [K, S] by id, in fp64, without atomics. Knows not where the values come from.

fp64, because then neither the order of the tokens nor who shares the batch reaches the fp32 result (but for a tie in
the last place about once in 10^8), and shares that cancel keep their digits.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from synpro_kernels.common.arithmetic import precise_dtype
from synpro_kernels.common.triton_status import triton_status
from synpro_kernels.ops.grad_dot.validate import check_ids

# Entries of the membership matrix that the PyTorch path holds at a time (other devices than the CPU).
_MEMBER_ENTRIES = 1 << 24


class GradDots(NamedTuple):
    """Inner products by segment and by token, fp32 (fp64 for fp64 inputs), with a leading K for several directions."""

    scores: Tensor
    """[segments] or [K, segments]."""
    tokens: Tensor
    """[...] like segment_ids, or [K, ...]; 0 where the id is -1."""


def by_segment(
    dots_KT: Tensor, segment_ids: Tensor, segments: int, *, several: bool, per_token: bool
) -> Tensor | GradDots:
    """Turn token dots into what the public functions return; `several`: K directions were given, not just one."""
    ids_T = segment_ids.reshape(-1)
    scores_KS = segment_sum(dots_KT, ids_T, segments=segments)
    scores = scores_KS if several else scores_KS[0]
    if not per_token:
        return scores
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
    sums_KS = _segment_sum(values.reshape(math.prod(values.shape[:-1]), values.shape[-1]), segment_ids, segments)
    return sums_KS.view(*values.shape[:-1], segments)


@torch.library.custom_op("synpro::segment_sum", mutates_args=())
def _segment_sum(values_KT: Tensor, ids_T: Tensor, segments: int) -> Tensor:
    out_dtype = precise_dtype(values_KT.dtype)
    if values_KT.device.type == "cpu":
        return _sum_on_cpu(values_KT, ids_T, segments).to(out_dtype)
    if values_KT.is_cuda and values_KT.dtype == torch.float32 and triton_status()[0]:
        from synpro_kernels.ops.grad_dot.triton_segments import segment_sum_triton

        sums_KS = segment_sum_triton(values_KT, ids_T, segments)
    else:
        sums_KS = _sum_by_membership(values_KT, ids_T, segments).to(out_dtype)
    return sums_KS.masked_fill_(((ids_T < -1) | (ids_T >= segments)).any(), torch.nan)


@_segment_sum.register_fake
def _(values_KT, ids_T, segments):
    return values_KT.new_empty(values_KT.shape[0], segments, dtype=precise_dtype(values_KT.dtype))


def check_id_range(ids_T: Tensor, segments: int) -> None:
    """Raise ValueError for an id outside [-1, segments); waits for the device."""
    wrong_T = (ids_T < -1) | (ids_T >= segments)
    if bool(wrong_T.any()):
        raise ValueError(f"segment_ids: expected -1 to {segments - 1}, got {int(ids_T[wrong_T][0])}")


def _sum_on_cpu(values_KT: Tensor, ids_T: Tensor, segments: int) -> Tensor:
    """One pass in token order: index_add_ of one dimension is sequential on the CPU."""
    check_id_range(ids_T, segments)
    directions = values_KT.shape[0]
    slots = segments + 1  # slot 0 takes the tokens that belong to none, and is dropped
    index_KT = (ids_T.long() + 1) + slots * torch.arange(directions)[:, None]
    sums = torch.zeros(directions * slots, dtype=torch.float64)
    sums.index_add_(0, index_KT.reshape(-1), values_KT.double().reshape(-1))
    return sums.view(directions, slots)[:, 1:].contiguous()


def _sum_by_membership(values_KT: Tensor, ids_T: Tensor, segments: int) -> Tensor:
    """Blocks of segments against all tokens, masked rather than multiplied: what belongs to none may be NaN."""
    blocks = []
    size = max(1, _MEMBER_ENTRIES // max(1, values_KT.numel()))
    for start in range(0, segments, size):
        wanted_S = torch.arange(start, min(start + size, segments), device=ids_T.device)
        member_ST = ids_T == wanted_S[:, None]
        blocks.append(torch.where(member_ST, values_KT.double()[:, None], 0.0).sum(-1))
    return torch.cat(blocks, -1) if blocks else values_KT.new_zeros(values_KT.shape[0], 0, dtype=torch.float64)
