"""The policy loss of a linear output layer, with gradients made in the forward pass (formula: `ops/policy_loss`)."""

from dataclasses import fields

import torch.distributed as dist
from torch import Tensor

from synpro_kernels.common.arithmetic import precise_dtype
from synpro_kernels.ops.linear_logprob.fused import Work, minimise
from synpro_kernels.ops.linear_logprob.types import IGNORE, LogitSettings, LogProbs
from synpro_kernels.ops.linear_logprob.validate import check_layer, check_main_grad, check_per_token
from synpro_kernels.ops.policy_loss import SurrogateTerms, grpo_loss

_REPORTED = tuple(field.name for field in fields(SurrogateTerms) if field.name != "objective")


def linear_policy_loss(
    hidden: Tensor,
    weight: Tensor,
    target: Tensor,
    *,
    behaviour: Tensor,
    advantage: Tensor,
    token_weight: Tensor,
    reference: Tensor | None = None,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    kl_beta: float = 0.0,
    bias: Tensor | None = None,
    temperature: float = 1.0,
    softcap: float | None = None,
    ignore_index: int = IGNORE,
    vocab_start: int = 0,
    group: dist.ProcessGroup | None = None,
    into_main_grad: bool = False,
) -> tuple[SurrogateTerms, Tensor]:
    """Return GRPO's loss (`policy_loss.grpo_loss`) of the targets, and the sum of their entropies (no gradient).

    Args are those of `linear_logprob` and `linear_cross_entropy`, and, each [...] like target and real:

        behaviour: log-prob under the policy that drew the target.
        advantage: of the target's completion.
        token_weight: the target's share; with 0 it counts nowhere, like an ignored one.
        reference: log-prob under the reference policy; None leaves out the KL term.

    Three matrix products, of which two only for the tokens that have a gradient: a token whose ratio the clip holds
    and that has no KL term costs its forward alone, an ignored one nothing. Backward can run once.

    Raises:
        ValueError: naming the argument and what was expected.

    """
    check_layer(hidden, weight, target, bias, temperature, softcap, vocab_start)
    check_main_grad(weight, into_main_grad)
    named = {"behaviour": behaviour, "advantage": advantage, "token_weight": token_weight, "reference": reference}
    per_token = {name: values for name, values in named.items() if values is not None}
    for name, values in per_token.items():
        check_per_token(name, values, target)
    for name, value in (("clip_low", clip_low), ("clip_high", clip_high), ("kl_beta", kl_beta)):
        if not 0.0 <= value < float("inf"):
            raise ValueError(f"{name}: expected a finite number >= 0, got {value}")

    def objective(logprobs: LogProbs, *values: Tensor) -> tuple[Tensor, ...]:
        behaviour_N, advantage_N, weight_N, *rest = values
        terms = grpo_loss(
            logprobs.logprob, behaviour_N=behaviour_N, advantage_N=advantage_N, weight_N=weight_N,
            reference_N=rest[0] if rest else None, clip_low=clip_low, clip_high=clip_high, kl_beta=kl_beta,
        )  # fmt: skip
        # The walk keeps u for every token anyway, so the entropy costs a division.
        assert logprobs.entropy is not None
        return terms.objective, *(getattr(terms, name) for name in _REPORTED), logprobs.entropy.sum()

    precise = precise_dtype(hidden.dtype)
    settings = LogitSettings(
        temperature=temperature, softcap=softcap, ignore_index=ignore_index, vocab_start=vocab_start
    )
    work = Work(
        objective=objective,
        per_token=[values.reshape(-1).to(precise) for values in per_token.values()],
        # A token of weight 0 is dropped before the first product, and with it from every reported sum.
        target_T=target.masked_fill(token_weight == 0, ignore_index).reshape(-1),
        settings=settings,
        group=None if group is None or group.size() == 1 else group,
        into_main_grad=into_main_grad,
    )
    objective_sum, *reports, entropy = minimise(hidden.reshape(-1, hidden.shape[-1]), weight, bias, work)
    return SurrogateTerms(objective=objective_sum, **dict(zip(_REPORTED, reports, strict=True))), entropy
