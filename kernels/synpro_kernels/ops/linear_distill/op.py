"""The public entry `linear_distill`. Shapes: T tokens, H widths, V vocabulary of this rank, C tokens of a chunk."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from synpro_kernels.common.first_order import check_first_order
from synpro_kernels.ops.linear_distill.types import Distilled, Teacher, parts_of
from synpro_kernels.ops.linear_distill.walk import Gradients, Task, walk
from synpro_kernels.ops.linear_logprob.fused import weight_gradient
from synpro_kernels.ops.linear_logprob.labelled_rows import LabelledRows
from synpro_kernels.ops.linear_logprob.types import IGNORE
from synpro_kernels.ops.linear_logprob.validate import check_layer, check_main_grad


def linear_distill(
    hidden: Tensor,
    weight: Tensor,
    target: Tensor,
    *,
    teachers: Sequence[Teacher],
    mixture: Sequence[float] | None = None,
    share: float = 0.5,
    temperature: float = 1.0,
    z_loss: float = 0.0,
    ignore_index: int = IGNORE,
    vocab_start: int = 0,
    group: dist.ProcessGroup | None = None,
    into_main_grad: bool = False,
) -> Distilled:
    """Learn from labels and from teachers' distributions (Hinton et al., arXiv 1503.02531), without holding logits.

    The sum over labelled tokens of (1 - share) (-log p(target)) + z_loss logsumexp^2 + share temperature^2 KL(q || p'),
    where q is the mean of the teachers' probabilities and p' the student's, both at the temperature. A few tokens'
    logits exist at a time; the gradients are made while they do, and live in fp32 until backward, which can run once.
    NaN in a token's row shows in its losses and gradients; a logit of -inf is a probability of 0, and where the student
    has it of what a teacher expects, the divergence is infinite.

    Args:
        hidden: [..., H], fp16, bf16, fp32 or fp64.
        weight: [V, H] in hidden's dtype; under a group this rank's rows, from id `vocab_start` on.
        target: [...] like hidden's tokens, on their device or on the host (then nothing is waited for, but under a
            group), global ids; ignore_index: no label, and nothing is learnt there.
        teachers: one or more, over the same vocabulary and cut over the group alike; constants, of any floating dtype.
        mixture: each teacher's part of the mean, above 0; they count in proportion to their sum. None: all alike.
        share: of the teachers, in [0, 1].
        temperature: above 0, of both sides of the divergence; its square keeps gradients as large as at 1.
        z_loss: weight of the squared log-sum-exp (at temperature 1), >= 0.
        ignore_index: a target that is none.
        vocab_start: of this rank's rows.
        group: of ranks that share the vocabulary; all hold the same hidden states and targets.
        into_main_grad: as in `linear_cross_entropy`.

    Raises:
        ValueError: naming the argument and what was expected; also for a target outside of the vocabulary.

    """
    check_layer(hidden, weight, target, None, 1.0, None, vocab_start, host_target=True)
    check_main_grad(weight, into_main_grad)
    _check(hidden, weight, teachers, share, temperature, z_loss)
    task = Task(
        target_T=target.reshape(-1),
        teachers=[Teacher(one.hidden.reshape(-1, one.hidden.shape[-1]), one.weight) for one in teachers],
        mixture=parts_of(teachers, mixture),
        share=share, temperature=temperature, z_loss=z_loss, ignore_index=ignore_index, vocab_start=vocab_start,
        group=None if group is None or group.size() == 1 else group,
    )  # fmt: skip
    apply: Any = torch.compiler.disable(_Distill.apply)
    return Distilled(
        *apply(hidden.reshape(-1, hidden.shape[-1]), weight, task, into_main_grad, torch.is_grad_enabled())
    )


class _Distill(torch.autograd.Function):
    """Gradients are made in the forward pass, as `linear_cross_entropy` makes them."""

    @staticmethod
    def forward(
        ctx: Any, hidden_TH: Tensor, weight_VH: Tensor, task: Task, into_main_grad: bool, grad_enabled: bool
    ) -> tuple[Tensor, ...]:
        """See `linear_distill`."""
        wanted = [grad_enabled and need for need in ctx.needs_input_grad[:2]]
        rows = LabelledRows(task.target_T, task.ignore_index, hidden_TH.device)
        if task.group is None:
            rows.check_within(task.vocab_start, task.vocab_start + len(weight_VH))
        sums, found = walk(rows.take(hidden_TH), weight_VH, task.of(rows), wanted)
        if found.hidden is not None:
            if task.group is not None:  # each rank has its columns' part
                dist.all_reduce(found.hidden, group=task.group)
            found = found._replace(hidden=rows.put(found.hidden))
        ctx.gradients, ctx.weight, ctx.dtype = found, weight_VH if into_main_grad else None, hidden_TH.dtype
        ctx.mark_non_differentiable(*sums[1:])
        return sums

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_unused: Tensor) -> tuple[Tensor | None, ...]:
        """Scales what the forward pass made."""
        check_first_order("linear_distill")
        if ctx.gradients is None:
            raise RuntimeError("the gradients were made in the forward pass and are used up: backward can run once")
        gradients: Gradients = ctx.gradients
        ctx.gradients = None
        hidden = None if gradients.hidden is None else gradients.hidden.mul_(grad).to(ctx.dtype)
        return hidden, weight_gradient(gradients.weight, grad, ctx.weight, ctx.dtype), None, None, None


def _check(
    hidden: Tensor, weight: Tensor, teachers: Sequence[Teacher], share: float, temperature: float, z_loss: float
) -> None:
    if not teachers:
        raise ValueError("teachers: expected one or more")
    for number, (rows, matrix) in enumerate(teachers):
        if rows.shape[:-1] != hidden.shape[:-1] or not rows.is_floating_point():
            found = f"{rows.dtype} {list(rows.shape)}"
            raise ValueError(f"teachers[{number}].hidden: expected floating {[*hidden.shape[:-1], 'H']}, got {found}")
        if matrix.shape != (weight.shape[0], rows.shape[-1]) or matrix.dtype != rows.dtype:
            found = f"{matrix.dtype} {list(matrix.shape)}"
            raise ValueError(
                f"teachers[{number}].weight: expected {rows.dtype} [{weight.shape[0]}, {rows.shape[-1]}], got {found}"
            )
        if torch.is_grad_enabled() and (rows.requires_grad or matrix.requires_grad):
            raise ValueError(f"teachers[{number}]: expected constants, which ask for no gradient")
    if not 0 <= share <= 1:
        raise ValueError(f"share: expected a number in [0, 1], got {share}")
    if not temperature > 0:
        raise ValueError(f"temperature: expected a number above 0, got {temperature}")
    if z_loss < 0:
        raise ValueError(f"z_loss: expected a number >= 0, got {z_loss}")
