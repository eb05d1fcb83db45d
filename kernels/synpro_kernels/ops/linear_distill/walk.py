"""The walk over chunks of tokens: logits of student and teachers, what they differ by, and its gradients.

Shape suffixes: T labelled tokens, C of a chunk, H width, V vocabulary of this rank, B columns of a block.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from synpro_kernels.common.arithmetic import HALVES, add_product, mm, operand, precise_dtype, product
from synpro_kernels.common.launch import ceil_div
from synpro_kernels.common.pieces import pieces
from synpro_kernels.ops.linear_distill.dispatch import LINEAR_DISTILL
from synpro_kernels.ops.linear_distill.types import Kernels, Norms, Slopes, Teacher
from synpro_kernels.ops.linear_logprob.fused import widest_shard
from synpro_kernels.ops.linear_logprob.labelled_rows import LabelledRows


@dataclass(frozen=True, kw_only=True)
class Task:
    """Everything but the student's own tensors; see `linear_distill`."""

    target_T: Tensor
    teachers: Sequence[Teacher]
    mixture: Sequence[float]
    share: float
    temperature: float
    z_loss: float
    ignore_index: int
    vocab_start: int
    group: dist.ProcessGroup | None

    def of(self, rows: LabelledRows) -> Task:
        """Of the labelled tokens alone."""
        teachers = [Teacher(rows.take(one.hidden), one.weight) for one in self.teachers]
        return replace(self, target_T=rows.target.long(), teachers=teachers)

    @property
    def column_T(self) -> Tensor:
        """The targets' columns among this rank's."""
        return self.target_T - self.vocab_start

    @property
    def slopes(self) -> Slopes:
        """What all tokens' slopes have in common."""
        by_teachers = float(self.share)
        return Slopes(
            inverse_temperature=1.0 / self.temperature, pull=by_teachers * self.temperature, label=1.0 - by_teachers
        )


class Gradients(NamedTuple):
    """Of the loss's sum, in fp32 (fp64): [T, H], this rank's columns' part of it, and [V, H]. None: not wanted."""

    hidden: Tensor | None
    weight: Tensor | None


class _Logits(NamedTuple):
    """A chunk's logits by one model, in blocks of columns that lie one after another in `buffer`."""

    hidden_CH: Tensor
    weight_VH: Tensor
    buffer: Tensor
    width: int

    def blocks(self) -> Iterator[tuple[slice, Tensor]]:
        """Columns, and their logits [C, B]: each block is contiguous, where columns of one [C, V] would be strided."""
        tokens = len(self.hidden_CH)
        for v in pieces(len(self.weight_VH), self.width):
            yield v, self.buffer[v.start * tokens : v.stop * tokens].view(tokens, v.stop - v.start)

    def filled(self, kernels: Kernels, column_C: Tensor, inverse_temperature: float, *, both: bool) -> Norms:
        """Make them all; what is seen of them on this rank."""
        norms, hidden_CH = Norms.empty(len(self.hidden_CH), self.buffer), operand(self.hidden_CH)
        for v, block_CB in self.blocks():
            _multiply(hidden_CH, operand(self.weight_VH[v]).t(), block_CB)
            kernels.norms_(block_CB, norms, column_C, v.start, inverse_temperature, both)
        return norms


def walk(
    hidden_TH: Tensor, weight_VH: Tensor, task: Task, wanted: Sequence[bool]
) -> tuple[tuple[Tensor, ...], Gradients]:
    """Sums of loss, cross-entropy, z-loss and divergence, and the gradients of the first. Collective over the group.

    Raises ValueError for a target that is not in exactly one rank's rows of a group.
    """
    if task.group is not None and len(task.target_T):  # alike on every rank, so that none waits for another
        _check_owners(task, len(weight_VH), task.group)
    dtype, kernels = precise_dtype(hidden_TH.dtype), LINEAR_DISTILL.kernels(hidden_TH)
    # The first chunk writes the weight's, where there is one.
    unwritten = weight_VH.new_empty if len(hidden_TH) else weight_VH.new_zeros
    found = Gradients(
        hidden_TH.new_zeros(hidden_TH.shape, dtype=dtype) if wanted[0] else None,
        unwritten(weight_VH.shape, dtype=dtype) if wanted[1] else None,
    )
    # The student's, the last teacher's, and what those before it made of the mean.
    held = min(3, 1 + len(task.teachers))
    tokens = _chunk(hidden_TH, weight_VH, task, held)
    buffers = hidden_TH.new_empty((held, min(tokens, len(hidden_TH)) * len(weight_VH)), dtype=dtype)
    sums = hidden_TH.new_zeros(3, dtype=dtype)
    for c in pieces(len(hidden_TH), tokens):
        part = replace(task, target_T=task.target_T[c], teachers=[Teacher(h[c], weight) for h, weight in task.teachers])
        into = found._replace(hidden=None if found.hidden is None else found.hidden[c])
        sums += _taught(hidden_TH[c], weight_VH, part, kernels, buffers, into, first=c.start == 0)
    if task.group is not None:
        # The divergence of each rank's columns; the others are of whole rows already.
        dist.all_reduce(sums[2:], group=task.group)
    cross_entropy, z, divergence = sums.unbind()
    loss = (1 - task.share) * cross_entropy + z + task.share * task.temperature**2 * divergence
    return (loss, cross_entropy, z, divergence), found


def _check_owners(task: Task, vocab: int, group: dist.ProcessGroup) -> None:
    """Raise ValueError, on every rank of the group, for a target that not exactly one of them holds."""
    owners_T = ((task.column_T >= 0) & (task.column_T < vocab)).int()
    dist.all_reduce(owners_T, group=group)
    if not bool((owners_T == 1).all()):
        wrong = int(task.target_T[owners_T != 1][0])
        raise ValueError(
            f"target: {wrong} is not in the vocabulary once, and is not ignore_index ({task.ignore_index})"
        )


def _chunk(hidden_TH: Tensor, weight_VH: Tensor, task: Task, held: int) -> int:
    """Tokens whose logits are held at once, so many times, and on a GPU their slopes beside them."""
    budget = (1 << 30) if hidden_TH.is_cuda else (64 << 20)
    # The largest shard's: ranks that cut their tokens differently would meet in each other's collectives.
    vocab = widest_shard(len(weight_VH), hidden_TH, task.group)
    slopes = hidden_TH.element_size() if hidden_TH.is_cuda and hidden_TH.dtype in HALVES else 0
    each = vocab * (held * precise_dtype(hidden_TH.dtype).itemsize + slopes)
    return max(16, budget // each // 16 * 16)


def _taught(
    hidden_CH: Tensor, weight_VH: Tensor, task: Task, kernels: Kernels, buffers: Tensor, into: Gradients, *, first: bool
) -> Tensor:
    """A chunk's sums of cross-entropy, z-loss and this rank's part of the divergence; gradients go to `into`.

    The first chunk writes the weight's, the others add to it.
    """
    column_C, slopes = task.column_T, task.slopes
    # A core's cache holds a block of 1024 columns from its product to what is done to it; a GPU wants one long product.
    width = len(weight_VH) if hidden_CH.is_cuda else 1024
    others = _mixed(task, kernels, buffers[1:], width)
    student, last = _Logits(hidden_CH, weight_VH, buffers[0], width), _Logits(*task.teachers[-1], buffers[1], width)
    inverse = slopes.inverse_temperature
    of_last = last.filled(kernels, column_C, inverse, both=False)
    of_student = student.filled(kernels, column_C, inverse, both=slopes.tempered)
    of_student, of_last = _joined((of_student, of_last), inverse, task.group)
    student_C4, losses = _of_student(of_student, slopes, task.z_loss)
    teacher_C3 = _of_teacher(of_last, task.mixture[-1])
    divergence_C, hidden_CH = torch.zeros_like(of_last.maximum), operand(hidden_CH)
    for (v, block_CB), (_, taught_CB), others_CB in zip(student.blocks(), last.blocks(), others, strict=True):
        slope_CB = kernels.differentiate(
            block_CB, taught_CB, others_CB, student_C4, teacher_C3, column_C, v.start, slopes, divergence_C,
            hidden_CH.dtype,
        )  # fmt: skip
        if into.hidden is not None:
            add_product(slope_CB, operand(weight_VH[v]), into.hidden)
        if into.weight is not None:
            (product if first else add_product)(slope_CB.t(), hidden_CH, into.weight[v])
    return torch.stack((*losses, divergence_C.sum()))


def _mixed(task: Task, kernels: Kernels, buffers: Tensor, width: int) -> Sequence[Tensor | None]:
    """What all teachers but the last make of the mean, block by block; Nones where there is one teacher."""
    inverse, mixed = task.slopes.inverse_temperature, list[Tensor]()
    for number, (hidden_CH, weight_VH) in enumerate(task.teachers[:-1]):
        # The first one's logits become its part where they lie; the others' pass through the last teacher's memory.
        logits = _Logits(hidden_CH, weight_VH, buffers[0 if number else 1], width)
        made = [block_CB for _, block_CB in logits.blocks()]
        mixed = mixed or made
        norms = logits.filled(kernels, task.column_T, inverse, both=False)
        teacher_C3 = _of_teacher(_joined([norms], inverse, task.group)[0], task.mixture[number])
        for block_CB, into_CB in zip(made, mixed, strict=True):
            kernels.mix_(block_CB, teacher_C3, into_CB, inverse, number == 0)
    return mixed or [None] * ceil_div(len(task.teachers[-1].weight), width)


def _of_student(norms: Norms, slopes: Slopes, z_loss: float) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """What rows of slopes need of each token [C, 4] (see `Kernels`), and sums of cross-entropy and z-loss."""
    sumexp_C = norms.sumexp if slopes.tempered else norms.tempered
    log_sum_C = sumexp_C.log()
    log_norm_C = norms.maximum + log_sum_C
    # Differences to the maximum first: at large logits the log-sum-exp itself has lost the small digits.
    cross_entropy_C = log_sum_C - (norms.target_logit - norms.maximum)
    # d KL / d logit = (p' - q) / temperature, times temperature^2; and of both losses of the labels, times p.
    of_tempered_C = slopes.pull / norms.tempered
    of_plain_C = (slopes.label + 2 * z_loss * log_norm_C) / sumexp_C
    coefficients = torch.stack((norms.maximum, norms.tempered.log(), of_tempered_C, of_plain_C), 1)
    return coefficients, (cross_entropy_C.sum(), z_loss * log_norm_C.square().sum())


def _of_teacher(norms: Norms, part: float) -> Tensor:
    """The same [C, 3] of a teacher, of which so much is in the mean."""
    scale_C = part / norms.tempered
    return torch.stack((norms.maximum, scale_C, scale_C.log()), 1)


def _joined(norms: Sequence[Norms], inverse_temperature: float, group: dist.ProcessGroup | None) -> list[Norms]:
    """Over all ranks' columns, of several models at once."""
    if group is None:
        return list(norms)
    top = torch.stack([one.maximum for one in norms])
    # The maxima have to be known before anything is summed: sums around other maxima do not add up.
    dist.all_reduce(top, op=dist.ReduceOp.MAX, group=group)
    parts = [(*one.around(at, inverse_temperature), one.target_logit) for one, at in zip(norms, top, strict=True)]
    sums = torch.stack([torch.stack(of) for of in parts])
    dist.all_reduce(sums, group=group)
    return [Norms(at, *of) for at, of in zip(top, sums, strict=True)]


def _multiply(a: Tensor, b: Tensor, out: Tensor) -> None:
    """Write a @ b to `out`; a teacher's may be of another precision than the student's."""
    if precise_dtype(a.dtype) == out.dtype:
        product(a, b, out)
    else:
        out.copy_(mm(a, b))
