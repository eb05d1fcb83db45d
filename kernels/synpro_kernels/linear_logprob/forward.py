"""The forward pass: choose the implementation, merge vocabulary shards, check the targets. No autograd here.

Shapes: T tokens, H width, V rows of this rank's weight.
"""

from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from synpro_kernels.extension import csrc_loaded
from synpro_kernels.linear_logprob import chunked
from synpro_kernels.linear_logprob.settings import KeptRows, LogitSettings, accumulation_dtype


class Evaluated(NamedTuple):
    """Results over the whole vocabulary [T], and the two numbers per token that the backward pass needs again."""

    logprob: Tensor
    logsumexp: Tensor
    entropy: Tensor
    """Empty where it was not asked for."""
    maximum: Tensor
    sumexp: Tensor


def use_csrc(hidden: Tensor) -> bool:
    """C++ computes in fp32 on the CPU; fp64 and other devices take the chunked PyTorch path."""
    return hidden.device.type == "cpu" and hidden.dtype != torch.float64 and csrc_loaded()


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
    local_T = rows.take(target_T).long() - settings.vocab_start
    parts = shard_stats(rows.take(hidden_TH), weight_VH, local_T, bias_V, settings)
    own_T = (local_T >= 0) & (local_T < weight_VH.shape[0])
    maximum, sumexp, weighted, target_logit, owners = _merge_shards(*parts, own_T, group)
    _check_owned(owners, rows.take(target_T), weight_VH.shape[0], settings, group)
    log_sum = sumexp.log()
    # Differences to the maximum first: at large logits the log-sum-exp itself has lost the small digits.
    logprob = (target_logit - maximum) - log_sum
    spread = rows.put(log_sum - weighted / sumexp) if entropy else logprob.new_empty(0)
    return Evaluated(
        rows.put(logprob), rows.put(maximum + log_sum), spread, rows.put(maximum), rows.put(sumexp, fill=1.0)
    )


def shard_stats(
    hidden_TH: Tensor, weight_VH: Tensor, local_T: Tensor, bias_V: Tensor | None, settings: LogitSettings
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return (maximum, sumexp, weighted, target_logit) of this shard; see `chunked.stats`."""
    if not use_csrc(hidden_TH):
        return chunked.stats(hidden_TH, weight_VH, local_T, bias_V, settings)
    return torch.ops.synpro_csrc.linear_logprob_stats(
        hidden_TH, weight_VH, local_T, bias_V, settings.temperature, settings.softcap or 0.0
    )


def _merge_shards(
    maximum: Tensor,
    sumexp: Tensor,
    weighted: Tensor,
    target_logit: Tensor,
    own_T: Tensor,
    group: dist.ProcessGroup | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Combine the shards of a group: two all-reduces, of [T] and of [4, T]. The last result counts owners."""
    if group is None:
        return maximum, sumexp, weighted, target_logit, own_T
    top = maximum.clone()
    dist.all_reduce(top, op=dist.ReduceOp.MAX, group=group)
    shift = (maximum - top).nan_to_num(nan=0.0, neginf=-1e4)  # a shard that is masked whole adds nothing
    decay = shift.exp()
    summed = torch.stack(
        [decay * sumexp, decay * (weighted + sumexp * shift), target_logit, own_T.to(target_logit.dtype)]
    )
    dist.all_reduce(summed, group=group)
    return top, summed[0], summed[1], summed[2], summed[3]


def _check_owned(
    owners_T: Tensor, target_T: Tensor, vocab: int, settings: LogitSettings, group: dist.ProcessGroup | None
) -> None:
    """Exactly one shard must hold each target: an id outside would silently score as logit 0."""
    if bool((owners_T == 1).all()):
        return
    wrong = int(target_T[owners_T != 1][0])
    if group is None:
        span = f"[{settings.vocab_start}, {settings.vocab_start + vocab})"
        raise ValueError(f"target: {wrong} is outside {span} and is not ignore_index ({settings.ignore_index})")
    raise ValueError(f"target: {wrong} is held by {int(owners_T[owners_T != 1][0])} shards of the group, expected 1")
