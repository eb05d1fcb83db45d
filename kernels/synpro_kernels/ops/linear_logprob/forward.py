"""The forward pass: merge vocabulary shards, check the targets, make results of statistics. No autograd here.

Shapes: T tokens, H width, V rows of this rank's weight.
"""

from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from synpro_kernels.common.arithmetic import precise_dtype
from synpro_kernels.ops.linear_logprob import blocks
from synpro_kernels.ops.linear_logprob.dispatch import LINEAR_LOGPROB
from synpro_kernels.ops.linear_logprob.labelled_rows import LabelledRows
from synpro_kernels.ops.linear_logprob.types import LogitSettings, Shard, Stats


class Evaluated(NamedTuple):
    """Results over the whole vocabulary [T], and the two numbers per token that the backward pass needs again."""

    logprob: Tensor
    logsumexp: Tensor
    entropy: Tensor
    """Empty where it was not asked for."""
    maximum: Tensor
    sumexp: Tensor


def evaluate(
    hidden_TH: Tensor,
    weight_VH: Tensor,
    target_T: Tensor,
    bias_V: Tensor | None,
    settings: LogitSettings,
    group: dist.ProcessGroup | None,
    *,
    entropy: bool,
) -> Evaluated:
    """Evaluate the labelled tokens; ignored ones get 0 (and sumexp 1). Raises ValueError for a target outside."""
    rows = LabelledRows(target_T, settings.ignore_index, hidden_TH.device)
    # An operator's outputs may not share memory, hence the clones.
    if rows.count == 0:  # alike on every rank of the group, so no rank waits for another
        zeros = hidden_TH.new_zeros(rows.total, dtype=precise_dtype(hidden_TH.dtype))
        entropy_T = zeros.clone() if entropy else zeros.new_empty(0)
        return Evaluated(zeros, zeros.clone(), entropy_T, zeros.clone(), zeros + 1.0)
    if group is None:
        rows.check_within(settings.vocab_start, settings.vocab_start + len(weight_VH))
    shard = shard_of(rows.take(hidden_TH), weight_VH, rows.target, bias_V, settings)
    labelled = finish(blocks.stats(shard, entropy=entropy), shard, rows.target, group)
    return Evaluated(
        rows.put(labelled.logprob),
        rows.put(labelled.logsumexp),
        rows.put(labelled.entropy) if entropy else labelled.entropy.new_empty(0),
        rows.put(labelled.maximum),
        rows.put(labelled.sumexp, fill=1.0),
    )


def shard_of(
    hidden_TH: Tensor, weight_VH: Tensor, target_T: Tensor, bias_V: Tensor | None, settings: LogitSettings
) -> Shard:
    """Put a rank's tensors together; all tokens are labelled ones."""
    kernels = LINEAR_LOGPROB.kernels(hidden_TH)
    if kernels.fused is not None:  # they step through rows and biases by one
        hidden_TH, weight_VH = hidden_TH.contiguous(), weight_VH.contiguous()
        bias_V = None if bias_V is None else bias_V.contiguous()
    # int64 for every backend: PyTorch gathers by it, C++ and Triton read it by pointer as one type.
    column_T = target_T.long().contiguous() - settings.vocab_start
    return Shard(
        hidden_TH=hidden_TH, weight_VH=weight_VH, bias_V=bias_V, column_T=column_T, settings=settings, kernels=kernels
    )


def finish(stats: Stats, shard: Shard, target_T: Tensor, group: dist.ProcessGroup | None) -> Evaluated:
    """Results over the whole vocabulary from this shard's statistics; collective over `group`.

    Raises ValueError for a target that is not in exactly one shard of a group; without one, `check_within` has looked.
    """
    if group is not None:
        stats = _merge_shards(stats, target_T, shard, group)
    log_sum = stats.sumexp.log()
    # Differences to the maximum first: at large logits the log-sum-exp itself has lost the small digits.
    logprob = (stats.target_logit - stats.maximum) - log_sum
    # From the shifted sums: lse - sum p z would subtract two numbers as large as the logits.
    entropy = log_sum - stats.weighted / stats.sumexp
    return Evaluated(logprob, stats.maximum + log_sum, entropy, stats.maximum, stats.sumexp)


def _merge_shards(stats: Stats, target_T: Tensor, shard: Shard, group: dist.ProcessGroup) -> Stats:
    """Combine the shards of a group, and count how many hold each target: two all-reduces, of [T] and of [4, T].

    Both carry the shards' spans along; ValueError where the shards hold more or fewer rows than they span together, and
    for a target that none of them, or more than one, holds.
    """
    start = shard.settings.vocab_start
    in_shard_T = (shard.column_T >= 0) & (shard.column_T < shard.vocab)
    # One maximum gives both ends of the vocabulary: the largest end, and the smallest start as the largest -start.
    # In the statistics' dtype, to travel with them: fp32 counts exactly up to 2^24, more than any vocabulary.
    span = stats.maximum.new_tensor([start + shard.vocab, -start])
    top = torch.cat([stats.maximum, span])
    # The maximum has to be known before anything is summed: shards' sums around other maxima do not add up.
    dist.all_reduce(top, op=dist.ReduceOp.MAX, group=group)
    top, (end, minus_start) = top[:-2], top[-2:]
    sumexp, weighted = stats.relative_to(top)
    # One all-reduce of [4, T] instead of four of [T].
    parts = torch.stack([sumexp, weighted, stats.target_logit, in_shard_T.to(top.dtype)])
    summed = torch.cat([parts.flatten(), top.new_tensor([shard.vocab])])
    dist.all_reduce(summed, group=group)
    sumexp, weighted, target_logit, owners_T = summed[:-1].view(4, -1)
    # One wait for both. Sums are equal on all ranks, so all raise or none does: nobody is left in a later collective.
    fits = summed[-1] == end + minus_start
    if not bool(fits & (owners_T == 1).all()):
        if not bool(fits):
            held, first, last = int(summed[-1]), -int(minus_start), int(end)
            raise ValueError(f"vocab_start: the group's shards hold {held} rows between {first} and {last}")
        wrong, owners = int(target_T[owners_T != 1][0]), int(owners_T[owners_T != 1][0])
        raise ValueError(f"target: {wrong} is held by {owners} shards of the group, expected 1")
    return Stats(top, sumexp, weighted, target_logit)
