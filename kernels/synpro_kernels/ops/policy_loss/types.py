"""What a policy's loss is given, what it is told to compute, and what it reports."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class PolicyTokens:
    """N drawn tokens: real tensors [N] of one dtype, none of which gets a gradient.

    behaviour: log-probability under the policy that ratios are taken to, under the same distribution (temperature,
    nucleus) that the trained policy is asked in. advantage: how much better than usual. weight: the token's share in
    the sum; with 0 it counts nowhere. reference: log-probability under the reference policy, or None. sequence_gap:
    mean over the token's completion of log-probability less `behaviour`, for ratios of whole completions, or None.
    correction: by what the surrogate is multiplied, for tokens drawn by another policy than `behaviour`'s, or None.
    """

    behaviour: Tensor
    advantage: Tensor
    weight: Tensor
    reference: Tensor | None = None
    sequence_gap: Tensor | None = None
    correction: Tensor | None = None

    def present(self) -> dict[str, Tensor]:
        """The tensors that are there, by name."""
        return {name: values for name, values in vars(self).items() if values is not None}


@dataclass(frozen=True, kw_only=True)
class PolicyObjective:
    """What is minimised: -surrogate + kl_beta KL - entropy_bonus entropy, each a weighted sum over tokens.

    surrogate: a name in `SURROGATES`. clip_low and clip_high: ratios are held within [1 - clip_low, 1 + clip_high].
    dual_clip: where the advantage is negative, `clip` lets no surrogate below dual_clip times it (Ye et al. 2020, arXiv
    1912.09729); > 1, or None. kl: a name in `DIVERGENCES`.

    Raises:
        ValueError: naming the field and what was expected.

    """

    surrogate: str = "clip"
    clip_low: float = 0.2
    clip_high: float = 0.2
    dual_clip: float | None = None
    kl: str = "k3"
    kl_beta: float = 0.0
    entropy_bonus: float = 0.0

    def __post_init__(self) -> None:
        for name in ("clip_low", "clip_high", "kl_beta", "entropy_bonus"):
            value = getattr(self, name)
            if not 0.0 <= value < math.inf:
                raise ValueError(f"{name}: expected a finite number >= 0, got {value}")
        if self.dual_clip is not None and not 1.0 < self.dual_clip < math.inf:
            raise ValueError(f"dual_clip: expected a finite number > 1, got {self.dual_clip}")


@dataclass(frozen=True, kw_only=True)
class SurrogateTerms:
    """Sums over the tokens whose weight is not 0. `objective` is differentiable; the others are for the record.

    objective: what is minimised; surrogate and kl: their weighted parts; divergence: of the estimates of KL, in nats, 0
    without a reference; entropy: of the policy's distributions, in nats; clipped: number of tokens whose gradient the
    clip removed or held; ratio and ratio_square: of the ratios that the surrogate sees; ratio_counts: how many of these
    are in each bin of `RATIO_EDGES`; gap: of |log ratio|; tokens: their number.
    """

    objective: Tensor
    surrogate: Tensor
    kl: Tensor
    divergence: Tensor
    entropy: Tensor
    clipped: Tensor
    ratio: Tensor
    ratio_square: Tensor
    ratio_counts: Tensor
    gap: Tensor
    tokens: Tensor
