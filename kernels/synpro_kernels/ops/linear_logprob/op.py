"""The public entry of `linear_logprob`: registration with torch.library, and the vocabulary-parallel form.

The op without a group is `torch.ops.synpro.linear_logprob` (fake and autograd registered, so torch.compile traces it
whole); with a group (or a `TileSkip`) it is an autograd function, since that is no operator argument.
"""

import torch
import torch.distributed as dist
from torch import Tensor

from synpro_kernels.common.arithmetic import precise_dtype
from synpro_kernels.common.first_order import check_first_order
from synpro_kernels.ops.linear_logprob.backward import differentiate
from synpro_kernels.ops.linear_logprob.forward import evaluate
from synpro_kernels.ops.linear_logprob.skip import TileSkip
from synpro_kernels.ops.linear_logprob.types import IGNORE, LogitSettings, LogProbs, Needed
from synpro_kernels.ops.linear_logprob.validate import check_layer


def linear_logprob(
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
    skip: TileSkip | None = None,
) -> LogProbs:
    """Log-probability of `target`, log-sum-exp and entropy under softmax(logits), without holding the logits.

    logits = softcap * tanh((hidden weight^T + bias) / softcap) / temperature, or without the cap where it is None.

    Args:
        hidden: [..., H], fp16, bf16, fp32 or fp64. Rows whose target is ignored may hold anything, NaN included.
        weight: [V, H], the dtype and device of hidden. Under `group`: this rank's rows, from id vocab_start on.
        target: [...], int32 or int64, global ids.
        bias: [V] like weight, or None. An entry of -inf removes it from the vocabulary (without softcap).
        temperature: > 0.
        softcap: > 0, or None.
        ignore_index: tokens with this target give 0 in every output and no gradient.
        vocab_start: global id of the weight's first row.
        group: the ranks that hold the other rows. Results and gradients are those of the unsharded layer, on every
            rank, provided each computes the same loss from them; the gradient of hidden is complete (all-reduced
            here), so whatever gathered hidden before must split that gradient, not sum it again.
        entropy: whether to return the entropy.
        skip: leave negligible columns out of the backward products, and count what is dropped; see `TileSkip`.

    Returns:
        LogProbs of shape [...], fp32 (fp64 for fp64 inputs); each output is differentiable in hidden, weight and bias.

    Raises:
        ValueError: naming the argument and what was expected.

    """
    check_layer(hidden, weight, target, bias, temperature, softcap, vocab_start)
    hidden_TH = hidden.reshape(-1, hidden.shape[-1])
    target_T = target.reshape(-1)
    # With one rank the registered op is as good, and torch.compile can trace it.
    group = None if group is None or group.size() == 1 else group
    if group is None and skip is None:
        # Settings one by one: the schema of an operator takes no dataclass.
        logprob, logsumexp, entropy_T, _, _ = _linear_logprob(
            hidden_TH, weight, target_T, bias, temperature, softcap, ignore_index, vocab_start, entropy
        )
    else:
        settings = LogitSettings(
            temperature=temperature, softcap=softcap, ignore_index=ignore_index, vocab_start=vocab_start
        )
        logprob, logsumexp, entropy_T = _Eager.apply(hidden_TH, weight, target_T, bias, settings, group, entropy, skip)
    shape = target.shape
    return LogProbs(logprob.view(shape), logsumexp.view(shape), entropy_T.view(shape) if entropy else None)


@torch.library.custom_op("synpro::linear_logprob", mutates_args=())
def _linear_logprob(
    hidden: Tensor,
    weight: Tensor,
    target: Tensor,
    bias: Tensor | None,
    temperature: float,
    softcap: float | None,
    ignore_index: int,
    vocab_start: int,
    entropy: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(logprob, logsumexp, entropy or empty, maximum, sumexp), each [T]; the last two are for the backward pass.

    It gets them instead of the log-sum-exp, which at large logits has lost the small digits that p = e^(z-m) / s keeps.
    """
    settings = LogitSettings(
        temperature=temperature, softcap=softcap, ignore_index=ignore_index, vocab_start=vocab_start
    )
    # Maximum and s go out as outputs, since what a custom op does not return its backward cannot be given.
    return evaluate(hidden, weight, target, bias, settings, None, entropy=entropy)


@_linear_logprob.register_fake
def _(hidden, weight, target, bias, temperature, softcap, ignore_index, vocab_start, entropy):
    rows = [
        hidden.new_empty(size, dtype=precise_dtype(hidden.dtype))
        for size in (hidden.shape[0], hidden.shape[0], hidden.shape[0] if entropy else 0, *[hidden.shape[0]] * 2)
    ]
    return tuple(rows)


# An operator of its own: a compiled backward calls it whole, where tracing would stop at its waits for the host.
@torch.library.custom_op("synpro::linear_logprob_backward", mutates_args=())
def _linear_logprob_backward(
    hidden: Tensor,
    weight: Tensor,
    target: Tensor,
    bias: Tensor | None,
    maximum: Tensor,
    sumexp: Tensor,
    entropy: Tensor,
    grad_logprob: Tensor | None,
    grad_logsumexp: Tensor | None,
    grad_entropy: Tensor | None,
    temperature: float,
    softcap: float | None,
    ignore_index: int,
    vocab_start: int,
    need_hidden: bool,
    need_weight: bool,
    need_bias: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of hidden, weight and bias; an empty tensor stands for one that was not asked for."""
    settings = LogitSettings(
        temperature=temperature, softcap=softcap, ignore_index=ignore_index, vocab_start=vocab_start
    )
    results, grads = (maximum, sumexp, entropy), (grad_logprob, grad_logsumexp, grad_entropy)
    need = Needed(need_hidden, need_weight, need_bias)
    gradients = differentiate(hidden, weight, target, bias, results, grads, settings, None, need)
    as_outputs = [hidden.new_empty(0) if gradient is None else gradient for gradient in gradients]
    return as_outputs[0], as_outputs[1], as_outputs[2]


@_linear_logprob_backward.register_fake
def _(hidden, weight, target, bias, *rest):
    need_hidden, need_weight, need_bias = rest[-3:]
    return (
        hidden.new_empty(hidden.shape if need_hidden else 0),
        hidden.new_empty(weight.shape if need_weight else 0),
        hidden.new_empty(weight.shape[:1] if need_bias else 0),
    )


def _save(ctx, inputs, output) -> None:
    hidden, weight, target, bias, *ctx.settings, _ = inputs
    # Beside what a linear layer keeps, the backward pass costs vectors of [T] only.
    _, _, entropy, maximum, sumexp = output
    # They carry the backward's numbers only: a loss on them would get a gradient that nobody computes.
    ctx.mark_non_differentiable(maximum, sumexp)
    ctx.set_materialize_grads(False)  # None says that the loss does not use an output, and its terms are left out
    ctx.save_for_backward(hidden, weight, target, bias, maximum, sumexp, entropy)


def _backward(ctx, *grads):
    check_first_order("linear_logprob")
    needs = ctx.needs_input_grad
    # The gradient of a sum arrives as one number, expanded; the row kernels read vectors.
    dense = [None if grad is None else grad.contiguous() for grad in grads[:3]]
    hidden, weight, bias = _linear_logprob_backward(
        *ctx.saved_tensors, *dense, *ctx.settings, needs[0], needs[1], needs[3]
    )
    return hidden if needs[0] else None, weight if needs[1] else None, None, bias if needs[3] else None, *[None] * 5


_linear_logprob.register_autograd(_backward, setup_context=_save)


class _Eager(torch.autograd.Function):
    """The same with what is no operator argument: a process group, an account of what is skipped."""

    @staticmethod
    def forward(ctx, hidden, weight, target, bias, settings, group, entropy, skip):
        results = evaluate(hidden, weight, target, bias, settings, group, entropy=entropy)
        ctx.settings, ctx.group, ctx.skip = settings, group, skip
        # As in `_save`: an output that the loss does not use costs nothing.
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(hidden, weight, target, bias, results.maximum, results.sumexp, results.entropy)
        return results.logprob, results.logsumexp, results.entropy

    @staticmethod
    def backward(ctx, *grads):
        check_first_order("linear_logprob")
        hidden, weight, target, bias, *results = ctx.saved_tensors
        need = Needed(ctx.needs_input_grad[0], ctx.needs_input_grad[1], ctx.needs_input_grad[3])
        gradients = differentiate(
            hidden, weight, target, bias, tuple(results), grads, ctx.settings, ctx.group, need, ctx.skip
        )
        return gradients.hidden, gradients.weight, None, gradients.bias, None, None, None, None
