"""The walk over chunks of tokens: logits of student and teachers, what they differ by, and its gradients.

Shape suffixes: T labelled tokens, C of a chunk, H width, V vocabulary of this rank.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from synpro_kernels.common.arithmetic import mm, precise_dtype
from synpro_kernels.common.pieces import pieces
from synpro_kernels.ops.linear_distill.types import Teacher
from synpro_kernels.ops.linear_logprob.fused import widest_shard
from synpro_kernels.ops.linear_logprob.labelled_rows import LabelledRows


@dataclass(frozen=True, kw_only=True)
class Task:
    """Everything but the student's own tensors; see `linear_distill`."""

    target_T: Tensor
    teachers: Sequence[Teacher]
    share: float
    temperature: float
    z_loss: float
    ignore_index: int
    vocab_start: int
    group: dist.ProcessGroup | None

    def of(self, rows: LabelledRows) -> Task:
        """Of the labelled tokens alone."""
        teachers = [Teacher(rows.take(one.hidden), one.weight) for one in self.teachers]
        return replace(self, target_T=rows.take(self.target_T).long(), teachers=teachers)


class Gradients(NamedTuple):
    """Of the loss's sum, in fp32 (fp64): [T, H], this rank's columns' part of it, and [V, H]. None: not wanted."""

    hidden: Tensor | None
    weight: Tensor | None


def walk(
    hidden_TH: Tensor, weight_VH: Tensor, task: Task, wanted: Sequence[bool]
) -> tuple[tuple[Tensor, ...], Gradients]:
    """Sums of loss, cross-entropy, z-loss and divergence, and the gradients of the first. Collective over the group.

    Raises ValueError for a target that is in no rank's rows.
    """
    dtype, tokens = precise_dtype(hidden_TH.dtype), hidden_TH.shape[0]
    found = Gradients(
        hidden_TH.new_zeros(hidden_TH.shape, dtype=dtype) if wanted[0] else None,
        weight_VH.new_zeros(weight_VH.shape, dtype=dtype) if wanted[1] else None,
    )
    sums = hidden_TH.new_zeros(3, dtype=dtype)
    for c in pieces(tokens, _chunk(hidden_TH, weight_VH, task)):
        part = replace(task, target_T=task.target_T[c], teachers=[Teacher(h[c], weight) for h, weight in task.teachers])
        logits_CV = mm(hidden_TH[c], weight_VH.t())
        parts, slope_CV = _differentiated(logits_CV, part, differentiate=any(wanted))
        sums += parts
        if found.hidden is not None:
            found.hidden[c] = mm(slope_CV.to(hidden_TH.dtype), weight_VH)
        if found.weight is not None:
            found.weight.add_(mm(slope_CV.to(hidden_TH.dtype).t(), hidden_TH[c]))
    if task.group is not None:
        # The divergence of each rank's columns; the others are of whole rows already.
        dist.all_reduce(sums[2:], group=task.group)
    cross_entropy, z, divergence = sums.unbind()
    loss = (1 - task.share) * cross_entropy + z + task.share * task.temperature**2 * divergence
    return (loss, cross_entropy, z, divergence), found


def _chunk(hidden_TH: Tensor, weight_VH: Tensor, task: Task) -> int:
    """Tokens whose logits are held at once, of the student, of the teachers' mean and of one teacher."""
    budget = (1 << 30) if hidden_TH.is_cuda else (64 << 20)
    # The largest shard's: ranks that cut their tokens differently would meet in each other's collectives.
    vocab = widest_shard(weight_VH.shape[0], hidden_TH, task.group)
    each = 3 * vocab * precise_dtype(hidden_TH.dtype).itemsize
    return max(16, budget // each // 16 * 16)


def _differentiated(logits_CV: Tensor, task: Task, *, differentiate: bool) -> tuple[Tensor, Tensor]:
    """Sums of cross-entropy, z-loss and this rank's part of the divergence, and the loss's slope by logit [C, V]."""
    column_C = task.target_T - task.vocab_start
    here_C = (column_C >= 0) & (column_C < logits_CV.shape[1])
    place_C1 = column_C.clamp(0, logits_CV.shape[1] - 1)[:, None]
    target_C = logits_CV.gather(1, place_C1)[:, 0] * here_C
    log_norm_C, (target_C, labels_C) = _log_norm(logits_CV, task.group, target_C, here_C)
    if not bool((labels_C == 1).all()):
        wrong = int(task.target_T[labels_C != 1][0])
        raise ValueError(
            f"target: {wrong} is not in the vocabulary once, and is not ignore_index ({task.ignore_index})"
        )
    cross_entropy, z = (log_norm_C - target_C).sum(), task.z_loss * log_norm_C.square().sum()
    taught_CV = _mean_probabilities(task)
    cool_CV = logits_CV if task.temperature == 1 else logits_CV / task.temperature
    cool_norm_C = log_norm_C if task.temperature == 1 else _log_norm(cool_CV, task.group)[0]
    found_CV = cool_CV - cool_norm_C[:, None]
    divergence = (torch.xlogy(taught_CV, taught_CV) - taught_CV * found_CV).sum()
    if differentiate:
        # d KL / d logit = (p' - q) / temperature, times temperature^2.
        pull = task.share * task.temperature
        slope_CV = found_CV.exp_().sub_(taught_CV).mul_(pull)
        by_label = 1 - task.share
        scale_C = by_label + 2 * task.z_loss * log_norm_C
        slope_CV.addcmul_(logits_CV.sub_(log_norm_C[:, None]).exp_(), scale_C[:, None])
        slope_CV.scatter_add_(1, place_C1, (-by_label * here_C.to(slope_CV.dtype))[:, None])
        found_CV = slope_CV
    return torch.stack((cross_entropy, z, divergence)), found_CV


def _mean_probabilities(task: Task) -> Tensor:
    """[C, V]: at the temperature, the mean of all teachers'."""
    total: Tensor | None = None
    for hidden_CH, weight_VH in task.teachers:
        logits_CV = mm(hidden_CH, weight_VH.t())
        if task.temperature != 1:
            logits_CV /= task.temperature
        log_norm_C, _ = _log_norm(logits_CV, task.group)
        probability_CV = logits_CV.sub_(log_norm_C[:, None]).exp_()
        total = probability_CV if total is None else total.add_(probability_CV)
    assert total is not None
    return total if len(task.teachers) == 1 else total.div_(len(task.teachers))


def _log_norm(logits_CV: Tensor, group: dist.ProcessGroup | None, *beside_C: Tensor) -> tuple[Tensor, list[Tensor]]:
    """The log-sum-exp over all ranks' columns, and further numbers of [C] summed over the ranks beside it."""
    top_C = logits_CV.amax(1)
    if group is not None:
        dist.all_reduce(top_C, op=dist.ReduceOp.MAX, group=group)
    sums = torch.stack([(logits_CV - top_C[:, None]).exp_().sum(1), *(each.to(top_C.dtype) for each in beside_C)])
    if group is not None:
        dist.all_reduce(sums, group=group)
    total_C, *rest = sums.unbind()
    return top_C + total_C.log(), rest
