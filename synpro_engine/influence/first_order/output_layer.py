"""The output layer's part: log-probabilities and how they move when its weight moves along directions.

With logits z = W h, p their softmax and z' = V h, moving W to W + e V changes log p_y by e (z'_y - sum_v p_v z'_v), and
logsumexp z by e sum_v p_v z'_v. Computed over blocks of tokens, so logits of all tokens are never held, in fp32 (fp64
for fp64 inputs), from one set of logits for values, slopes and the gradient of h.

Shape suffixes: T tokens, H hidden width, V this rank's rows of the vocabulary, K directions, C tokens of a block.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from synpro_engine.data import IGNORE
from synpro_kernels.common.arithmetic import mm
from synpro_kernels.common.pieces import block_bytes, pieces


@dataclass(frozen=True, kw_only=True)
class OutputPass:
    """Results of `output_pass`; 0 where the target is ignored.

    target_KT and mean_KT are this rank's parts of z'_y and sum_v p_v z'_v: their sums over the ranks are the whole.
    """

    logprob_T: Tensor
    target_KT: Tensor
    mean_KT: Tensor
    grad_hidden_TH: Tensor | None
    """slope * d(sum_t log p_t) / d hidden, complete on every rank, in hidden's dtype; None without `slope`."""
    grad_weight_VH: Tensor | None
    """The same by this rank's rows of the weight; None where it was not asked for."""


@torch.no_grad()
def output_pass(
    hidden_TH: Tensor,
    weight_VH: Tensor,
    direction_KVH: Tensor,
    target_T: Tensor,
    *,
    vocab_start: int = 0,
    group: dist.ProcessGroup | None = None,
    slope: float | None = None,
    weight_gradient: bool = False,
) -> OutputPass:
    """Log-probabilities of `target_T` (global ids, -100 ignored), and their slopes along K directions of the weight.

    hidden_TH, weight_VH and direction_KVH have one dtype. `group`: the ranks that hold the other rows; each calls with
    the same hidden and targets. `slope` asks for the gradient of slope * sum_t log p_t with respect to hidden, and
    `weight_gradient` for the one with respect to the weight too, one product more.
    """
    # A logit of 10 in bf16 is good to 0.03, more than most scores.
    precise = torch.promote_types(hidden_TH.dtype, torch.float32)
    tokens, directions = hidden_TH.size(0), direction_KVH.size(0)
    logprob_T = hidden_TH.new_zeros(tokens, dtype=precise)
    target_KT, mean_KT = (logprob_T.new_zeros(directions, tokens) for _ in range(2))
    grad_TH = None if slope is None else hidden_TH.new_zeros(hidden_TH.shape, dtype=precise)
    grad_VH = weight_VH.new_zeros(weight_VH.shape, dtype=precise) if weight_gradient else None
    rows = weight_VH.size(0)
    # Blocks of tokens, all of V each: a token's softmax is known after its last logit, and slopes are means under it.
    for block in pieces(tokens, block_bytes(weight_VH) // (rows * max(4, weight_VH.element_size()))):
        target = _Target.in_shard(target_T[block], vocab_start, rows)
        z_CV = mm(hidden_TH[block], weight_VH.t())
        logprob_T[block] = target.of(z_CV)
        logsumexp_C = _logsumexp(z_CV, group)
        if group is None or group.rank() == 0:  # the ranks' targets are summed below; one takes the logsumexp off
            logprob_T[block] -= torch.where(target.labelled_C, logsumexp_C, 0.0)
        # In place: the target's logit has been read, and p takes the memory of z.
        p_CV = z_CV.sub_(logsumexp_C[:, None]).exp_()
        for k, direction_VH in enumerate(direction_KVH):
            # 2 T H V operations for each direction, as many as the logits took.
            moved_CV = mm(hidden_TH[block], direction_VH.t())
            target_KT[k, block] = target.of(moved_CV)
            mean_KT[k, block] = torch.where(target.labelled_C, moved_CV.mul_(p_CV).sum(1), 0.0)
        if grad_TH is not None and slope is not None:
            # In the operands' dtype, since tensor cores multiply equal ones; training's own gradient is rounded there
            # too.
            grad_logits_CV = target.minus_(p_CV).to(hidden_TH.dtype)  # last: it overwrites p
            grad_TH[block] = mm(grad_logits_CV, weight_VH).mul_(slope)
            if grad_VH is not None:
                grad_VH.add_(mm(grad_logits_CV.t(), hidden_TH[block]), alpha=slope)
    # One sum over the ranks for all blocks; `_logsumexp` alone has to sum within each.
    for part in (logprob_T, grad_TH):
        if part is not None and group is not None:
            dist.all_reduce(part, group=group)
    return OutputPass(
        logprob_T=logprob_T,
        target_KT=target_KT,
        mean_KT=mean_KT,
        grad_hidden_TH=None if grad_TH is None else grad_TH.to(hidden_TH.dtype),
        grad_weight_VH=None if grad_VH is None else grad_VH.to(weight_VH.dtype),
    )


@dataclass(frozen=True)
class _Target:
    """The targets of a block: which are scored, which of these lie in this shard, and where (else column 0)."""

    labelled_C: Tensor
    here_C: Tensor
    column_C1: Tensor

    @classmethod
    def in_shard(cls, target_C: Tensor, vocab_start: int, rows: int) -> _Target:
        local_C = target_C - vocab_start
        labelled_C = target_C != IGNORE
        here_C = labelled_C & (local_C >= 0) & (local_C < rows)
        return cls(labelled_C, here_C, torch.where(here_C, local_C, 0)[:, None])

    def of(self, values_CV: Tensor) -> Tensor:
        """The target's column [C]; 0 where it is not here."""
        return torch.where(self.here_C, values_CV.gather(1, self.column_C1)[:, 0], 0.0)

    def minus_(self, p_CV: Tensor) -> Tensor:
        """1[target] - p, the gradient of its log-probability by the logits; 0 where it is ignored. Writes to p_CV."""
        # One index a row: additions cannot meet, so the bits repeat although scatters are atomic on CUDA.
        p_CV.neg_().scatter_add_(1, self.column_C1, self.here_C[:, None].to(p_CV.dtype))
        return p_CV.masked_fill_(~self.labelled_C[:, None], 0.0)


def _logsumexp(z_CV: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    """[C], over the whole vocabulary."""
    if group is None:
        return z_CV.logsumexp(1)
    # The largest logit of all ranks first, so that no rank's exponentials overflow or vanish.
    top_C = z_CV.amax(1)
    # Twice a block: ranks must cut tokens alike, which they do while shards of the vocabulary are of one size.
    dist.all_reduce(top_C, op=dist.ReduceOp.MAX, group=group)
    sum_C = (z_CV - top_C[:, None]).exp_().sum(1)
    dist.all_reduce(sum_C, group=group)
    return top_C + sum_C.log()
