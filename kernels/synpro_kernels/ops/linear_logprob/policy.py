"""The policy loss of a linear output layer, with gradients made in the forward pass (formula: `ops/policy_loss`)."""

from dataclasses import fields

import torch.distributed as dist
from torch import Tensor

from synpro_kernels.common.arithmetic import precise_dtype
from synpro_kernels.ops.linear_logprob.fused import Work, minimise
from synpro_kernels.ops.linear_logprob.types import IGNORE, LogitSettings, LogProbs
from synpro_kernels.ops.linear_logprob.validate import check_layer, check_main_grad, check_per_token
from synpro_kernels.ops.policy_loss import PolicyObjective, PolicyTokens, SurrogateTerms, policy_loss

_TERMS = tuple(field.name for field in fields(SurrogateTerms))


def linear_policy_loss(
    hidden: Tensor,
    weight: Tensor,
    target: Tensor,
    *,
    tokens: PolicyTokens,
    objective: PolicyObjective,
    bias: Tensor | None = None,
    temperature: float = 1.0,
    softcap: float | None = None,
    ignore_index: int = IGNORE,
    vocab_start: int = 0,
    group: dist.ProcessGroup | None = None,
    into_main_grad: bool = False,
) -> SurrogateTerms:
    """Return the policy loss (`policy_loss.policy_loss`) of the targets.

    Args are those of `linear_logprob` and `linear_cross_entropy`, and:

        tokens: what is known of the targets, each tensor [...] like target.
        objective: what is minimised; its surrogate may look at a token alone.

    Three matrix products, of which two only for the tokens that have a gradient: a token whose ratio the clip holds
    and that has no KL term costs its forward alone, an ignored one, or one of weight 0, nothing. Backward can run once.

    Raises:
        ValueError: naming the argument and what was expected.

    """
    check_layer(hidden, weight, target, bias, temperature, softcap, vocab_start)
    check_main_grad(weight, into_main_grad)
    given = tokens.present()
    for name, values in given.items():
        check_per_token(name, values, target)

    def minimised(logprobs: LogProbs, *values: Tensor) -> tuple[Tensor, ...]:
        # The walk keeps what entropy needs for every token anyway: it costs a division.
        assert logprobs.entropy is not None
        part = PolicyTokens(**dict(zip(given, values, strict=True)))
        terms = policy_loss(logprobs.logprob, logprobs.entropy, part, objective)
        return tuple(getattr(terms, name) for name in _TERMS)

    precise = precise_dtype(hidden.dtype)
    settings = LogitSettings(
        temperature=temperature, softcap=softcap, ignore_index=ignore_index, vocab_start=vocab_start
    )
    work = Work(
        objective=minimised,
        per_token=[values.reshape(-1).to(precise) for values in given.values()],
        # A token of weight 0 is dropped before the first product.
        target_T=target.masked_fill(tokens.weight == 0, ignore_index).reshape(-1),
        settings=settings,
        group=None if group is None or group.size() == 1 else group,
        into_main_grad=into_main_grad,
        sparse=True,
    )
    sums = minimise(hidden.reshape(-1, hidden.shape[-1]), weight, bias, work)
    return SurrogateTerms(**dict(zip(_TERMS, sums, strict=True)))
