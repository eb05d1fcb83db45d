"""The backward pass of `linear_logprob`: the logits are computed again, never cached. Sums over vocabulary shards.

Shapes: T tokens, H width, V rows of this rank's weight.
"""

import torch
import torch.distributed as dist
from torch import Tensor

from synpro_kernels.ops.linear_logprob import blocks
from synpro_kernels.ops.linear_logprob.coefficients import coefficients
from synpro_kernels.ops.linear_logprob.forward import shard_of
from synpro_kernels.ops.linear_logprob.labelled_rows import LabelledRows
from synpro_kernels.ops.linear_logprob.skip import TileSkip
from synpro_kernels.ops.linear_logprob.types import Gradients, LogitSettings, Needed, Stats


def differentiate(
    hidden_TH: Tensor,
    weight_VH: Tensor,
    target_T: Tensor,
    bias_V: Tensor | None,
    results_T: tuple[Tensor, Tensor, Tensor],
    grads_T: tuple[Tensor | None, Tensor | None, Tensor | None],
    settings: LogitSettings,
    group: dist.ProcessGroup | None,
    need: Needed,
    skip: TileSkip | None = None,
) -> Gradients:
    """Gradients from those of (logprob, logsumexp, entropy), where None means zero, each in its tensor's dtype.

    `results_T`: the forward's (maximum, sumexp, entropy). With `group`, hidden's gradient is summed over the shards: it
    is complete and equal on every rank.
    """
    rows = LabelledRows(target_T, settings.ignore_index, hidden_TH.device)
    # An entropy that was not asked for is empty, and so may its gradient be.
    used = [None if grad is None or grad.numel() == 0 else grad for grad in grads_T]
    if rows.count == 0 or all(grad is None for grad in used):
        # Before any collective, and alike on every rank: labels and used outputs are the same on all of a group.
        return Gradients(
            # new_zeros, not zeros_like: contiguous whatever the input's strides, as the fake op promises.
            hidden_TH.new_zeros(hidden_TH.shape) if need.hidden else None,
            weight_VH.new_zeros(weight_VH.shape) if need.weight else None,
            weight_VH.new_zeros(weight_VH.shape[0]) if need.bias else None,
        )
    coefficients_T5 = _coefficients(rows, results_T, used, settings)
    shard = shard_of(rows.take(hidden_TH), weight_VH, rows.target, bias_V, settings)
    labelled = blocks.gradients(shard, coefficients_T5, need, skip)
    grad_hidden = labelled.hidden
    if grad_hidden is not None:
        if group is not None:  # summed in fp32, then rounded: once, and alike on every rank
            dist.all_reduce(grad_hidden, group=group)
        grad_hidden = rows.put(grad_hidden.to(hidden_TH.dtype))
    # Weight and bias need no sum over the group: each rank's rows are its own.
    grad_bias = None if labelled.bias is None else labelled.bias.to(hidden_TH.dtype)
    return Gradients(grad_hidden, labelled.weight, grad_bias)


def _coefficients(
    rows: LabelledRows, results_T: tuple[Tensor, ...], grads_T: list[Tensor | None], settings: LogitSettings
) -> Tensor:
    maximum, sumexp, entropy = results_T
    zero = torch.zeros_like(maximum)
    filled_T3 = torch.stack([zero if grad is None else grad for grad in grads_T], 1)
    statistics = Stats(rows.take(maximum), rows.take(sumexp), zero, zero)
    labelled_entropy = rows.take(entropy) if grads_T[2] is not None else None
    return coefficients(statistics, labelled_entropy, rows.take(filled_T3), settings)
