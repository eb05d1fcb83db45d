"""The definition of `linear_logprob`: plain PyTorch that holds every logit.

Arithmetic is fp32, or fp64 where the inputs are fp64 (so that gradcheck can be run on it).
Shapes: T tokens (any leading shape), H width, V entries of the vocabulary (of this rank's shard under `group`).
"""

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from synpro_kernels.common.arithmetic import precise_dtype
from synpro_kernels.ops.linear_logprob.types import IGNORE, LogProbs


class _SumGradient(torch.autograd.Function):
    """Identity whose gradient is summed over the group: each rank's logits depend on the same hidden states."""

    @staticmethod
    def forward(ctx, hidden: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        return hidden.view_as(hidden)

    @staticmethod
    def backward(ctx, grad: Tensor):
        # A clone: the all-reduce writes in place, and the gradient is autograd's.
        grad = grad.contiguous().clone()
        dist.all_reduce(grad, group=ctx.group)
        return grad, None


class _JoinShards(torch.autograd.Function):
    """Every rank's columns side by side; each rank keeps the gradient of its own (the loss is the same on all)."""

    @staticmethod
    def forward(ctx, logits: Tensor, vocab_start: int, group: dist.ProcessGroup) -> Tensor:
        columns = logits.shape[-1]
        end = torch.tensor(vocab_start + columns, device=logits.device)
        dist.all_reduce(end, op=dist.ReduceOp.MAX, group=group)
        ctx.columns = slice(vocab_start, vocab_start + columns)
        # Zeros and a sum, not a gather: shards need not be of one size, and all_gather wants equal ones.
        joined = logits.new_zeros(*logits.shape[:-1], int(end))
        joined[..., ctx.columns] = logits
        dist.all_reduce(joined, group=group)
        return joined

    @staticmethod
    def backward(ctx, grad: Tensor):
        # No sum: every rank differentiates the same loss, so each has the whole gradient of the joined logits already.
        return grad[..., ctx.columns], None, None


def linear_logprob_definition(
    hidden: Tensor,
    weight: Tensor,
    target: Tensor,
    *,
    bias: Tensor | None = None,
    temperature: float = 1.0,
    softcap: float | None = None,
    ignore_index: int = IGNORE,
    vocab_start: int = 0,
    group: dist.ProcessGroup | None = None,
    entropy: bool = False,
) -> LogProbs:
    """Compute what `linear_logprob` computes, by definition; same arguments, no validation."""
    with torch.autocast(hidden.device.type, enabled=False):  # it would make the product in half precision
        return _by_definition(
            hidden, weight, target, bias, temperature, softcap, ignore_index, vocab_start, group, entropy
        )


def _by_definition(
    hidden: Tensor,
    weight: Tensor,
    target: Tensor,
    bias: Tensor | None,
    temperature: float,
    softcap: float | None,
    ignore_index: int,
    vocab_start: int,
    group: dist.ProcessGroup | None,
    entropy: bool,
) -> LogProbs:
    precise = precise_dtype(hidden.dtype)
    labelled = target != ignore_index
    # Ignored rows may hold anything, NaN included: nothing of them may reach the weight's gradient.
    rows = hidden.to(precise).masked_fill(~labelled[..., None], 0.0)
    if group is not None:
        rows = _SumGradient.apply(rows, group)
    logits = F.linear(rows, weight.to(precise), None if bias is None else bias.to(precise))
    if softcap is not None:
        # The cap before the temperature: it is a part of the model, the temperature of how it is sampled.
        logits = softcap * torch.tanh(logits / softcap)
    logits = logits / temperature
    if group is not None:
        logits, vocab_start = _JoinShards.apply(logits, vocab_start, group), 0

    logprobs = F.log_softmax(logits, dim=-1)
    # -100 is no index; what is gathered at column 0 instead is overwritten below.
    column = torch.where(labelled, target.long() - vocab_start, 0)
    logprob = logprobs.gather(-1, column[..., None]).squeeze(-1)
    entropy_T = None
    if entropy:
        # A logit of -inf has probability 0 and adds nothing; 0 * -inf would be NaN.
        finite = logprobs.masked_fill(logprobs == -torch.inf, 0.0)
        entropy_T = torch.where(labelled, -(logprobs.exp() * finite).sum(-1), 0.0)
    return LogProbs(
        torch.where(labelled, logprob, 0.0), torch.where(labelled, torch.logsumexp(logits, dim=-1), 0.0), entropy_T
    )
