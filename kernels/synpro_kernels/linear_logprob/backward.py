"""The backward pass: logits are computed again, never kept. Chooses the implementation, sums over vocabulary shards.

Shapes: T tokens, H width, V rows of this rank's weight.
"""

from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from synpro_kernels.linear_logprob import chunked
from synpro_kernels.linear_logprob.forward import use_csrc
from synpro_kernels.linear_logprob.settings import KeptRows, LogitSettings


class Gradients(NamedTuple):
    """Gradients in their tensors' own dtype and shape; None where none was asked for."""

    hidden: Tensor | None
    weight: Tensor | None
    bias: Tensor | None


def differentiate(
    hidden_TH: Tensor,
    weight_VH: Tensor,
    target_T: Tensor,
    bias_V: Tensor | None,
    results_T: tuple[Tensor, Tensor, Tensor],
    grads_T: tuple[Tensor | None, Tensor | None, Tensor | None],
    settings: LogitSettings,
    group: dist.ProcessGroup | None,
    *,
    need_hidden: bool,
    need_weight: bool,
) -> Gradients:
    """Gradients from those of (logprob, logsumexp, entropy), where None means zero.

    `results_T`: the forward's (maximum, sumexp, entropy). With `group`, hidden's gradient is summed over the shards: it
    is complete and equal on every rank.
    """
    rows = KeptRows(target_T, settings.ignore_index)
    # An entropy that was not asked for is empty, and so may its gradient be.
    used = [None if grad is None or grad.numel() == 0 else grad for grad in grads_T]
    if rows.count == 0 or all(grad is None for grad in used):
        return _no_gradient(hidden_TH, weight_VH, bias_V, need_hidden=need_hidden, need_weight=need_weight)
    maximum, sumexp, entropy = results_T
    results = (maximum, sumexp, entropy if entropy.numel() else torch.zeros_like(maximum))
    filled = [torch.zeros_like(maximum) if grad is None else grad for grad in used]
    grad_hidden, grad_weight, grad_bias = shard_gradients(
        rows.take(hidden_TH),
        weight_VH,
        rows.take(target_T).long() - settings.vocab_start,
        bias_V,
        tuple(rows.take(row) for row in (*results, *filled)),
        settings,
        need_hidden=need_hidden,
        need_weight=need_weight,
    )
    if grad_hidden is not None:
        if group is not None:
            dist.all_reduce(grad_hidden, group=group)
        grad_hidden = rows.put(grad_hidden.to(hidden_TH.dtype))
    if grad_bias is not None and bias_V is not None:
        grad_bias = grad_bias.to(bias_V.dtype)
    return Gradients(grad_hidden, grad_weight, grad_bias)


def shard_gradients(
    hidden_TH: Tensor,
    weight_VH: Tensor,
    local_T: Tensor,
    bias_V: Tensor | None,
    rows_T: tuple[Tensor, ...],
    settings: LogitSettings,
    *,
    need_hidden: bool,
    need_weight: bool,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Return this shard's gradients; `rows_T`: maximum, sumexp, entropy, then the three output gradients, each [T]."""
    if not use_csrc(hidden_TH):
        results, grads = (rows_T[0], rows_T[1], rows_T[2]), (rows_T[3], rows_T[4], rows_T[5])
        return chunked.gradients(
            hidden_TH,
            weight_VH,
            local_T,
            bias_V,
            results,
            grads,
            settings,
            need_hidden=need_hidden,
            need_weight=need_weight,
        )
    softcap = settings.softcap or 0.0
    hidden, weight, bias = torch.ops.synpro_csrc.linear_logprob_grad(
        hidden_TH, weight_VH, local_T, bias_V, *rows_T, settings.temperature, softcap, need_hidden, need_weight
    )
    return hidden if need_hidden else None, weight if need_weight else None, bias if bias_V is not None else None


def _no_gradient(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, *, need_hidden: bool, need_weight: bool
) -> Gradients:
    return Gradients(
        torch.zeros_like(hidden) if need_hidden else None,
        torch.zeros_like(weight) if need_weight else None,
        None if bias is None else torch.zeros_like(bias),
    )
