"""The loss of a policy from log-probabilities, as sums over tokens."""

from __future__ import annotations

from torch import Tensor

from synpro_kernels.ops.policy_loss.divergence import DIVERGENCES
from synpro_kernels.ops.policy_loss.histogram import ratio_counts
from synpro_kernels.ops.policy_loss.surrogates import SURROGATES
from synpro_kernels.ops.policy_loss.types import PolicyObjective, PolicyTokens, SurrogateTerms


def policy_loss(
    logprob_N: Tensor, entropy_N: Tensor, tokens: PolicyTokens, objective: PolicyObjective
) -> SurrogateTerms:
    """Return what `objective` says of N tokens, as sums over those whose weight is not 0.

    logprob_N, entropy_N: of the policy in training, real [N] like those of `tokens`; the objective is differentiable in
    both. The sums have no denominator: that is the whole job's number of tokens or completions.

    Raises:
        KeyError: for a surrogate or divergence that no table has.

    """
    keep_N = tokens.weight != 0
    # Taken out, not multiplied by 0: what a dropped token holds may be NaN.
    tokens = PolicyTokens(**{name: values[keep_N] for name, values in tokens.present().items()})
    logprob_N, entropy_N = logprob_N[keep_N], entropy_N[keep_N]
    gain = SURROGATES[objective.surrogate](logprob_N, tokens, objective)
    weight_N, value_N = tokens.weight, gain.value
    if tokens.correction is not None:
        value_N = value_N * tokens.correction
    surrogate, kl = (weight_N * value_N).sum(), logprob_N.new_zeros(())
    divergence = kl
    if tokens.reference is not None:
        estimate_N = DIVERGENCES[objective.kl](logprob_N, tokens.reference)
        kl, divergence = (weight_N * estimate_N).sum(), estimate_N.detach().sum()
    loss = objective.kl_beta * kl - surrogate
    if objective.entropy_bonus:
        loss = loss - objective.entropy_bonus * (weight_N * entropy_N).sum()
    ratio_N = gain.ratio.detach()
    return SurrogateTerms(
        objective=loss,
        surrogate=surrogate.detach(),
        kl=kl.detach(),
        divergence=divergence,
        entropy=entropy_N.detach().sum(),
        clipped=gain.held.sum().to(ratio_N.dtype),
        ratio=ratio_N.sum(),
        ratio_square=ratio_N.square().sum(),
        ratio_counts=ratio_counts(ratio_N),
        gap=(logprob_N.detach() - tokens.behaviour).abs().sum(),
        tokens=ratio_N.new_tensor(float(len(ratio_N))),
    )
