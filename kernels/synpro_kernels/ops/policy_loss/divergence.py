"""Estimates of KL(policy || reference) at sampled tokens (Schulman 2020, "Approximating KL divergence")."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

LARGEST_LOG_RATIO = 20.0
"""Ratios are held at e^20: an infinite one turns the gradient into NaN even where a clip has removed it (0 inf)."""


def k1(logprob_N: Tensor, reference_N: Tensor) -> Tensor:
    """Return d = logprob - reference: unbiased, of either sign; the mean of its own gradient under the policy is 0."""
    return logprob_N - reference_N


def k2(logprob_N: Tensor, reference_N: Tensor) -> Tensor:
    """Return d^2 / 2: biased by terms of third order, and its gradient is on average that of the divergence itself."""
    return 0.5 * (logprob_N - reference_N).square()


def k3(logprob_N: Tensor, reference_N: Tensor) -> Tensor:
    """Return exp(-d) - 1 + d: unbiased, never negative, and 0 with zero gradient where the two agree.

    Its gradient is on average that of KL(reference || policy), the divergence the other way round.
    """
    # Held like ratios: exp overflows fp32 at 88.
    difference_N = (reference_N - logprob_N).clamp(max=LARGEST_LOG_RATIO)
    # expm1: exp(x) - 1 is good to 6e-8 near 0, no more than the x^2 / 2 that is left of it at x = 3.5e-4.
    return torch.expm1(difference_N) - difference_N


DIVERGENCES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"k1": k1, "k2": k2, "k3": k3}
"""(log-probabilities of the policy [N], of the reference [N]) -> estimates [N], by name."""
