"""The forward pass: merge vocabulary shards, check the targets, make results of statistics. No autograd here.

Shapes: T tokens, H width, V rows of this rank's weight.
"""

from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from synpro_kernels.linear_logprob.blocks import Shard, stats
from synpro_kernels.linear_logprob.dispatch import implementation_for
from synpro_kernels.linear_logprob.rows import Stats
from synpro_kernels.linear_logprob.settings import KeptRows, LogitSettings, accumulation_dtype


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
    """Evaluate the kept tokens; ignored ones get 0 (and sumexp 1). Raises ValueError for a target outside."""
    rows = KeptRows(target_T, settings.ignore_index)
    if rows.count == 0:  # alike on every rank of the group, so no rank waits for another
        zeros = hidden_TH.new_zeros(rows.total, dtype=accumulation_dtype(hidden_TH.dtype))
        spread = zeros.clone() if entropy else zeros.new_empty(0)
        return Evaluated(zeros, zeros.clone(), spread, zeros.clone(), zeros + 1.0)
    shard = shard_of(rows.take(hidden_TH), weight_VH, rows.take(target_T), bias_V, settings)
    found = finish(stats(shard, entropy=entropy), shard, rows.take(target_T), group)
    return Evaluated(
        rows.put(found.logprob),
        rows.put(found.logsumexp),
        rows.put(found.entropy) if entropy else found.entropy.new_empty(0),
        rows.put(found.maximum),
        rows.put(found.sumexp, fill=1.0),
    )


def shard_of(
    hidden_TH: Tensor, weight_VH: Tensor, target_T: Tensor, bias_V: Tensor | None, settings: LogitSettings
) -> Shard:
    """Put a rank's tensors together; all tokens are kept ones."""
    return Shard(
        hidden_TH=hidden_TH,
        weight_VH=weight_VH,
        bias_V=bias_V,
        column_T=target_T.long() - settings.vocab_start,
        settings=settings,
        how=implementation_for(hidden_TH),
    )


def finish(found: Stats, shard: Shard, target_T: Tensor, group: dist.ProcessGroup | None) -> Evaluated:
    """Results over the whole vocabulary from this shard's statistics; collective over `group`.

    Raises ValueError for a target that is not in exactly one shard: it would silently score as logit 0.
    """
    own_T = (shard.column_T >= 0) & (shard.column_T < shard.vocab)
    found, owners_T = _merge_shards(found, own_T, group)
    _check_owned(owners_T, target_T, shard, group)
    log_sum = found.sumexp.log()
    # Differences to the maximum first: at large logits the log-sum-exp itself has lost the small digits.
    logprob = (found.target_logit - found.maximum) - log_sum
    entropy = log_sum - found.weighted / found.sumexp
    return Evaluated(logprob, found.maximum + log_sum, entropy, found.maximum, found.sumexp)


def _merge_shards(found: Stats, own_T: Tensor, group: dist.ProcessGroup | None) -> tuple[Stats, Tensor]:
    """Combine the shards of a group, and count how many hold each target: two all-reduces, of [T] and of [4, T]."""
    if group is None:
        return found, own_T
    top = found.maximum.clone()
    dist.all_reduce(top, op=dist.ReduceOp.MAX, group=group)
    shift = (found.maximum - top).nan_to_num(nan=0.0, neginf=-1e4)  # a shard that is masked whole adds nothing
    decay = shift.exp()
    summed = torch.stack(
        [
            decay * found.sumexp,
            decay * (found.weighted + found.sumexp * shift),
            found.target_logit,
            own_T.to(found.target_logit.dtype),
        ]
    )
    dist.all_reduce(summed, group=group)
    return Stats(top, summed[0], summed[1], summed[2]), summed[3]


def _check_owned(owners_T: Tensor, target_T: Tensor, shard: Shard, group: dist.ProcessGroup | None) -> None:
    """Exactly one shard must hold each target."""
    if bool((owners_T == 1).all()):
        return
    wrong = int(target_T[owners_T != 1][0])
    if group is None:
        start, ignored = shard.settings.vocab_start, shard.settings.ignore_index
        span = f"[{start}, {start + shard.vocab})"
        raise ValueError(f"target: {wrong} is outside {span} and is not ignore_index ({ignored})")
    raise ValueError(f"target: {wrong} is held by {int(owners_T[owners_T != 1][0])} shards of the group, expected 1")
