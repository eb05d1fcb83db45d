"""Log-probabilities renormalised over the nucleus of each token, without the other logits.

With top-p sampling a token was drawn from some tens of ids, its nucleus. Their logits alone decide its probability, so
only those rows of the output layer are multiplied: n products of width H instead of N x V. Works with the vocabulary
split over tensor-parallel ranks.

Results and gradients are deterministic on the CPU. On CUDA the sums over a token's ids and over an id's tokens are
atomic additions in no fixed order, so they agree from run to run only up to rounding.

Shape suffixes: N tokens, H model width, V rows of this rank's output layer, n ids of all tokens' nuclei together.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from synpro_engine.sampler import Nuclei
from synpro_kernels import LogProbs

_ELEMENTS = 1 << 24  # gathered weight entries held at once (64 MiB of fp32)


def nucleus_logprob(
    hidden_NH: Tensor,
    weight: Tensor,
    target_N: Tensor,
    nuclei: Nuclei,
    *,
    temperature: float,
    bias: Tensor | None = None,
    vocab_start: int = 0,
    group: dist.ProcessGroup | None = None,
) -> LogProbs:
    """log softmax of the target among the ids of its row's nucleus, fp32 [N], with log-sum-exp and entropy over them.

    hidden_NH and weight [V, H]: fp32 or bf16, products in fp32; target_N: int64 global ids, each in its row's nucleus
    (else ValueError). bias: [V] like weight, added to the logits before the temperature; it gets no gradient. Under
    `group` results and gradients equal the unsharded ones, and the gradient of hidden is complete on each rank.
    `logprob` and `entropy` are differentiable.
    """
    device = hidden_NH.device
    # Stored as int32: half the memory while rollouts wait for their update.
    offsets, id_n = nuclei.offsets.to(device), nuclei.ids.to(device, torch.int64)
    count_N = offsets[1:] - offsets[:-1]
    row_n = torch.repeat_interleave(torch.arange(len(count_N), device=device), count_N)
    at_N = (id_n == target_N[row_n]).nonzero()[:, 0]
    # A target outside has probability 0, so its ratio would mean nothing: tokens and nuclei are out of step.
    if len(at_N) != len(target_N) or not torch.equal(row_n[at_N], torch.arange(len(target_N), device=device)):
        raise ValueError("nuclei: each target must be in its own row's nucleus, once")
    logprob_N, total_N, entropy_N = _NucleusLogProb.apply(
        hidden_NH, weight, row_n, id_n - vocab_start, at_N, temperature, group, bias
    )
    return LogProbs(logprob_N, total_N, entropy_N)


def _local_pieces(row_n: Tensor, local_n: Tensor, rows: int, width: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Positions in n, rows and weight rows of the ids that this rank holds, a bounded number at a time."""
    # Each tensor-parallel rank multiplies the ids of its own rows, and the sum over ranks puts them together.
    here = ((local_n >= 0) & (local_n < rows)).nonzero()[:, 0]
    for at in here.split(max(1, _ELEMENTS // width)):
        yield at, row_n[at], local_n[at]


class _NucleusLogProb(torch.autograd.Function):
    """d logprob_i / d z_ij = 1[j is the target] - p_ij, and d entropy_i / d z_ij = -p_ij (log p_ij + entropy_i).

    So the backward pass needs the n probabilities, not V.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden_NH: Tensor,
        weight_VH: Tensor,
        row_n: Tensor,
        local_n: Tensor,
        at_N: Tensor,
        temperature: float,
        group: dist.ProcessGroup | None,
        bias_V: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        logit_n = torch.zeros(len(row_n), dtype=torch.float32, device=hidden_NH.device)
        for at, row, local in _local_pieces(row_n, local_n, *weight_VH.shape):
            # fp32, as the sampler's output layer: at the sampled policy the ratio is then 1 but for rounding.
            logit_n[at] = torch.einsum("nh,nh->n", hidden_NH[row].float(), weight_VH[local].float())
            if bias_V is not None:
                logit_n[at] += bias_V[local].float()
        logit_n /= temperature
        if group is not None:
            dist.all_reduce(logit_n, group=group)  # each id is held by one rank, the others add 0
        # The largest logit comes off first: exp overflows fp32 at 88.
        top_N = torch.full((len(at_N),), float("-inf"), device=logit_n.device)
        top_N = top_N.scatter_reduce(0, row_n, logit_n, "amax")
        sum_N = torch.zeros_like(top_N).index_add_(0, row_n, torch.exp(logit_n - top_N[row_n]))
        total_N = top_N + torch.log(sum_N)
        prob_n = torch.exp(logit_n - total_N[row_n])
        entropy_N = total_N - torch.zeros_like(top_N).index_add_(0, row_n, prob_n * logit_n)
        ctx.save_for_backward(hidden_NH, weight_VH, row_n, local_n, at_N, prob_n, entropy_N)
        ctx.temperature, ctx.group = temperature, group
        ctx.mark_non_differentiable(total_N)
        return logit_n[at_N] - total_N, total_N, entropy_N

    @staticmethod
    def backward(ctx: Any, grad_N: Tensor, _total: Tensor, grad_entropy_N: Tensor) -> tuple[Tensor | None, ...]:
        hidden_NH, weight_VH, row_n, local_n, at_N, prob_n, entropy_N = ctx.saved_tensors
        # entr(p) = -p log p, which is 0 where a probability has gone under.
        grad_n = (torch.special.entr(prob_n) - prob_n * entropy_N[row_n]) * grad_entropy_N[row_n]
        grad_n -= prob_n * grad_N[row_n]
        # No index is twice in at_N, as checked when it was made: an indexed `+=` would keep one of them.
        grad_n[at_N] += grad_N
        grad_n /= ctx.temperature
        need_hidden, need_weight = ctx.needs_input_grad[:2]
        # fp32 sums: a token adds up as many terms as its nucleus has ids, a vocabulary row as many as nuclei hold it.
        grad_NH = torch.zeros(hidden_NH.shape, dtype=torch.float32, device=grad_N.device)
        grad_VH = torch.zeros(weight_VH.shape, dtype=torch.float32, device=grad_N.device) if need_weight else None
        for at, row, local in _local_pieces(row_n, local_n, *weight_VH.shape):
            if need_hidden:
                grad_NH.index_add_(0, row, grad_n[at, None] * weight_VH[local].float())
            if grad_VH is not None:
                grad_VH.index_add_(0, local, grad_n[at, None] * hidden_NH[row].float())
        # Hidden's gradient alone: each rank's rows of the weight are its own.
        if ctx.group is not None and need_hidden:
            dist.all_reduce(grad_NH, group=ctx.group)
        return (
            grad_NH.to(hidden_NH.dtype) if need_hidden else None,
            None if grad_VH is None else grad_VH.to(weight_VH.dtype),
            *(None,) * 6,
        )
