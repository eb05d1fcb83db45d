"""What GRPO minimises: the clipped surrogate plus the KL divergence from the reference policy, as sums over tokens.

Of N tokens of completions, given by their log-probabilities, advantages and weights.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

LARGEST_LOG_RATIO = 20.0
"""Ratios are held at e^20: an infinite one turns the gradient into NaN even where the clip has removed it (0 inf)."""


@dataclass(frozen=True, kw_only=True)
class SurrogateTerms:
    """Sums over tokens (fp32 scalars). `objective` is differentiable; the others are for the record.

    objective: weighted sum of -surrogate + beta KL; surrogate and kl: their weighted parts; clipped: number of
    tokens whose gradient the clip removed; ratio: sum of ratios; gap: sum of |log ratio|.
    """

    objective: Tensor
    surrogate: Tensor
    kl: Tensor
    clipped: Tensor
    ratio: Tensor
    gap: Tensor


def k3(logprob_N: Tensor, reference_N: Tensor) -> Tensor:
    """Estimate KL(policy || reference) at each sampled token: exp(d) - d - 1 with d = reference - policy.

    Unbiased under the policy's own samples, never negative, and 0 with zero gradient where the two agree
    (Schulman 2020, "Approximating KL divergence", k3).
    """
    # Held like the ratio below: exp overflows fp32 at 88.
    difference_N = (reference_N - logprob_N).clamp(max=LARGEST_LOG_RATIO)
    # expm1: exp(d) - 1 is good to 6e-8 near 0, no more than the d^2 / 2 that is left of it at d = 3.5e-4.
    return torch.expm1(difference_N) - difference_N


def grpo_loss(
    logprob_N: Tensor,
    *,
    behaviour_N: Tensor,
    advantage_N: Tensor,
    weight_N: Tensor,
    reference_N: Tensor | None,
    clip_low: float,
    clip_high: float,
    kl_beta: float,
) -> SurrogateTerms:
    """Return GRPO's loss over N tokens (arXiv 2402.03300, eq. 3; separate clips as in DAPO, arXiv 2503.14476).

    All tensors are fp32 [N] (or fp64 [N]).

    logprob_N: of the policy in training; behaviour_N: the sampler's, under the same distribution (temperature,
    nucleus); advantage_N: of each token's completion; weight_N: the token's share in the mean, before its denominator;
    reference_N: the reference policy's, None without the KL term.

    surrogate = min(rho A, clip(rho, 1 - clip_low, 1 + clip_high) A), rho = exp(logprob - behaviour).
    """
    log_ratio_N = logprob_N - behaviour_N
    ratio_N = torch.exp(log_ratio_N.clamp(max=LARGEST_LOG_RATIO))
    # Within the clips both products below are equal: `minimum` halves the gradient between them, and clamp passes its
    # half on whole.
    limited_N = ratio_N.clamp(1.0 - clip_low, 1.0 + clip_high)
    surrogate_N = torch.minimum(ratio_N * advantage_N, limited_N * advantage_N)
    surrogate = (weight_N * surrogate_N).sum()
    kl = logprob_N.new_zeros(()) if reference_N is None else (weight_N * k3(logprob_N, reference_N)).sum()
    with torch.no_grad():
        # Strictly less: within the clips both sides are one number.
        clipped = (limited_N * advantage_N < ratio_N * advantage_N).sum().float()
    return SurrogateTerms(
        # Minimised, hence the sign; sums, not means, because the denominator is the whole job's number of tokens.
        objective=kl_beta * kl - surrogate,
        surrogate=surrogate.detach(),
        kl=kl.detach(),
        clipped=clipped,
        ratio=ratio_N.detach().sum(),
        gap=log_ratio_N.detach().abs().sum(),
    )
