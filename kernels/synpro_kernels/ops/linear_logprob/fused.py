"""Objectives of a linear output layer whose gradients are made within the forward pass.

Where what is minimised is a sum over tokens of a function of their log-probs, each token's gradient is known as soon
as its logits are. So the tokens are walked in chunks whose logits are cached until they have become gradients:
three matrix products (6THV) instead of the four of forward plus rematerialising backward. Backward only scales.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from synpro_kernels.common.first_order import check_first_order
from synpro_kernels.common.pieces import pieces
from synpro_kernels.ops.grad_dot import formed_dot
from synpro_kernels.ops.linear_logprob import block_sizes
from synpro_kernels.ops.linear_logprob.along import Along, TokenShares
from synpro_kernels.ops.linear_logprob.cached_logits import CachedLogits
from synpro_kernels.ops.linear_logprob.coefficients import coefficients
from synpro_kernels.ops.linear_logprob.forward import Evaluated, finish, shard_of
from synpro_kernels.ops.linear_logprob.labelled_rows import LabelledRows
from synpro_kernels.ops.linear_logprob.types import Gradients, LogitSettings, LogProbs, Shard

Objective = Callable[..., tuple[Tensor, ...]]
"""(LogProbs [C], one [C] tensor per entry of per_token) -> (sum to minimise, further sums to report), scalars."""


@dataclass(frozen=True, kw_only=True)
class Work:
    """One evaluation: what is minimised over which tokens."""

    objective: Objective
    per_token: Sequence[Tensor]
    """[T] each; the objective gets the entries of the tokens it is called with."""
    target_T: Tensor
    """On the tokens' device or on the host, where reading it is no wait."""
    settings: LogitSettings
    group: dist.ProcessGroup | None
    sparse: bool = False
    """Whether many labelled tokens have no gradient: worth a wait for the device, to leave them out of the products."""
    into_main_grad: bool = False
    """Whether the weight's gradient goes to Megatron's `weight.main_grad` and not to autograd."""
    along: Along | None = None
    """Directions of the weight along which the objective's slope is reported; loss and gradients stay as they are."""


def minimise(hidden_TH: Tensor, weight_VH: Tensor, bias_V: Tensor | None, work: Work) -> tuple[Tensor, ...]:
    """The objective's sums over the labelled tokens; the first is differentiable, once, the others are for the record.

    Where directions are given, the slopes come last: [K, T] for each token, 0 for ignored ones, or [K].

    The objective must treat tokens independently: it is called with a chunk of them at a time. Under a group every
    rank must hold the same hidden, targets and per-token tensors.
    """
    # The walk depends on the data (labelled rows, live rows), which a compiler can only break its graphs over.
    apply: Any = torch.compiler.disable(_Fused.apply)
    return apply(hidden_TH, weight_VH, bias_V, work, torch.is_grad_enabled())


class _Fused(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden, weight, bias, work: Work, grad_enabled: bool):
        needed = [grad_enabled and need for need in ctx.needs_input_grad[:3]]
        settings = work.settings
        rows = LabelledRows(work.target_T, settings.ignore_index, hidden.device)
        if work.group is None:
            rows.check_within(settings.vocab_start, settings.vocab_start + len(weight))
        shard = shard_of(rows.take(hidden), weight, rows.target, bias, settings)
        shares = TokenShares.wanted(work.along, shard.hidden_TH)
        # The sum of the shares is read off the weight's gradient, which is then made even where autograd wants none.
        totals = _accumulators(shard, [needed[0], needed[1] or (work.along is not None and shares is None), needed[2]])
        sums = _walk(shard, rows, work, totals, shares)
        if shares is not None:
            sums = (*sums, rows.put(shares.values_KC.t()).t())
        elif work.along is not None and totals.weight is not None:
            sums = (*sums, formed_dot(totals.weight, work.along.direction_KVH))
        totals = totals if needed[1] else totals._replace(weight=None)
        if totals.hidden is not None:
            # A rank without a labelled token has none anywhere in its group, and still comes here: all enter or none.
            if work.group is not None:  # once for all chunks, in fp32: each rank has only its columns' part
                dist.all_reduce(totals.hidden, group=work.group)
            totals = totals._replace(hidden=rows.put(totals.hidden))
        # Not save_for_backward: these are no inputs or outputs, and backward overwrites them.
        ctx.gradients, ctx.weight, ctx.dtype = totals, weight if work.into_main_grad else None, hidden.dtype
        # Only the first sum's gradient was made; the others must not look as if they had one.
        ctx.mark_non_differentiable(*sums[1:])
        return sums

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_unused: Tensor):
        check_first_order("linear_logprob")
        if ctx.gradients is None:
            raise RuntimeError("the gradients were made in the forward pass and are used up: backward can run once")
        # Scaled in place, so that no second copy of [T, H] and [V, H] in fp32 exists; hence once.
        gradients, ctx.gradients = ctx.gradients, None
        return (
            None if gradients.hidden is None else gradients.hidden.mul_(grad).to(ctx.dtype),
            weight_gradient(gradients.weight, grad, ctx.weight, ctx.dtype),
            None if gradients.bias is None else gradients.bias.mul_(grad).to(ctx.dtype),
            None,
            None,
        )


def _accumulators(shard: Shard, needed: Sequence[bool]) -> Gradients:
    # Every chunk adds to the whole weight's gradient: in bf16 it would be rounded once a chunk. In fp32 it is rounded
    # at the end, or not at all on its way to `main_grad`.
    def zeros(like: Tensor) -> Tensor:
        return like.new_zeros(like.shape, dtype=shard.precise)

    bias, weight = shard.bias_V, shard.weight_VH
    # The weight's is 4 V H bytes until backward: 2.1 GB at V 131072, H 4096. The first chunk writes it.
    unwritten = weight.new_empty if shard.tokens else weight.new_zeros
    return Gradients(
        zeros(shard.hidden_TH) if needed[0] else None,
        unwritten(weight.shape, dtype=shard.precise) if needed[1] else None,
        zeros(bias) if needed[2] and bias is not None else None,
    )


def _walk(
    shard: Shard, rows: LabelledRows, work: Work, into: Gradients, shares: TokenShares | None
) -> tuple[Tensor, ...]:
    """Sum what the objective returns over chunks of tokens, and the gradients of its first sum."""
    per_token = [rows.take(values) for values in work.per_token]
    tokens, width = block_sizes.cached(shard, widest_shard(shard.vocab, shard.hidden_TH, work.group))
    # As large as the budget allows, because each chunk reads and writes all of the weight's gradient: with four chunks,
    # of which the first only writes it, at T 8192, H 4096, V 131072 that is 15.0 GB, 3.6 ms at 4.2 TB/s
    # (docs/kernels.md).
    # One buffer for all chunks: each is used up before the next is filled.
    buffer = shard.hidden_TH.new_empty(min(tokens, shard.tokens) * shard.vocab, dtype=shard.precise)
    sums: tuple[Tensor, ...] = ()
    # An empty chunk where no token is labelled: the objective still says what it reports.
    for t in pieces(shard.tokens, tokens) if shard.tokens else [slice(0, 0)]:
        part = shard.rows(t)
        cached = CachedLogits(part, width, buffer)
        # Collective, once a chunk: `block_sizes.cached` cuts all ranks' tokens alike by the widest shard.
        logprobs = finish(cached.stats, part, rows.target[t], work.group)
        values, grads_C3, entropy_matters = _differentiate_objective(
            work.objective, logprobs, [each[t] for each in per_token]
        )
        sums = tuple(a + b for a, b in zip(sums, values, strict=True)) if sums else values
        if any(each is not None for each in (*into, shares)):
            entropy = logprobs.entropy if entropy_matters else None
            # Under a group the gradient is taken against the whole vocabulary's maximum and sum, not this shard's.
            statistics = cached.stats._replace(maximum=logprobs.maximum, sumexp=logprobs.sumexp)
            into_chunk = into._replace(hidden=None if into.hidden is None else into.hidden[t])
            chunk_shares = None if shares is None else shares.of(t)
            cached.add_gradients(
                coefficients(statistics, entropy, grads_C3, work.settings), into_chunk, chunk_shares,
                sparse=work.sparse, first=t.start == 0,
            )  # fmt: skip
    return sums


def widest_shard(vocab: int, like: Tensor, group: dist.ProcessGroup | None) -> int:
    """Rows of the largest shard, of which this rank's has `vocab`; collective over the group."""
    if group is None:
        return vocab
    # On every rank of the group, or this waits for ever: `minimise` is collective from its first line.
    size = torch.tensor(vocab, device=like.device)
    dist.all_reduce(size, op=dist.ReduceOp.MAX, group=group)
    return int(size)


@torch.enable_grad()
def _differentiate_objective(
    objective: Objective, logprobs: Evaluated, per_token: Sequence[Tensor]
) -> tuple[tuple[Tensor, ...], Tensor, bool]:
    """The objective's sums of some tokens, its gradients of (logprob, logsumexp, entropy) [C, 3], if it has the last.

    Autograd on vectors of one chunk: next to nothing beside the products, and no formula to derive for an objective.
    """
    # Detached: autograd sees [C] vectors and the objective alone, never the walk over the vocabulary.
    leaves = [part.detach().requires_grad_() for part in (logprobs.logprob, logprobs.logsumexp, logprobs.entropy)]
    values = objective(LogProbs(*leaves), *per_token)
    grads = torch.autograd.grad(values[0], leaves, allow_unused=True)
    # Zeros for what the objective does not use (entropy, as a rule), so that every backend takes five coefficients.
    # That it is not used is known without a look at numbers, for which the host would wait.
    filled = [torch.zeros_like(leaf) if grad is None else grad for leaf, grad in zip(leaves, grads, strict=True)]
    return tuple(value.detach() for value in values), torch.stack(filled, 1), grads[2] is not None


def weight_gradient(total_VH: Tensor | None, grad: Tensor, holder: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """The weight's gradient for autograd; where `holder` keeps an fp32 `main_grad`, the sum goes there unrounded.

    Megatron's agreement: `grad_added_to_main_grad` tells its hook not to add what autograd delivers, unless
    `zero_out_wgrad` says that another use of the same weight (a tied embedding) delivers through autograd as well.
    """
    if total_VH is None:
        return None
    if holder is None:
        return total_VH.mul_(grad).to(dtype)
    target: Any = holder
    # One pass, product and sum: scaling first would write 4 V H bytes more.
    target.main_grad.addcmul_(total_VH, grad.to(target.main_grad.dtype))
    # An empty tensor goes back, not None: Megatron's hook asserts a gradient where reductions overlap.
    target.grad_added_to_main_grad = True
    return torch.zeros_like(holder) if getattr(holder, "zero_out_wgrad", False) else torch.empty_like(holder)
