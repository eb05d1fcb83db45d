"""What of a policy's gain is maximised, token by token: a table of functions, to which users may add.

With the log ratio d = logprob - behaviour, rho = exp(d) and the advantage A.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from synpro_kernels.ops.policy_loss.divergence import LARGEST_LOG_RATIO
from synpro_kernels.ops.policy_loss.types import PolicyObjective, PolicyTokens


class Gain(NamedTuple):
    """value [N], differentiable in the log-probabilities; for the record ratio [N] and held [N] (bool, by the clip)."""

    value: Tensor
    ratio: Tensor
    held: Tensor


Surrogate = Callable[[Tensor, PolicyTokens, PolicyObjective], Gain]
"""(logprob [N], tokens, settings) -> gain of each token, which must not depend on the others."""


def clip(logprob_N: Tensor, tokens: PolicyTokens, objective: PolicyObjective) -> Gain:
    """min(rho A, clip(rho) A) (PPO, arXiv 1707.06347, eq. 7; separate clips: DAPO, arXiv 2503.14476, eq. 10)."""
    return _clipped(_ratio(logprob_N - tokens.behaviour), tokens.advantage, objective)


def gspo(logprob_N: Tensor, tokens: PolicyTokens, objective: PolicyObjective) -> Gain:
    """The same with the ratio s = exp(mean of d over the completion) of the whole completion for each of its tokens.

    GSPO (arXiv 2507.18071, eq. 5 to 7) in its form by tokens (eq. 13 and 14): the value is s, the gradient reaches each
    token through its own log-probability. With every completion weighted alike the sum over its tokens has the gradient
    of eq. 5.
    """
    assert tokens.sequence_gap is not None, "gspo compares whole completions: it wants sequence_gap"
    own_N = logprob_N - logprob_N.detach()
    return _clipped(_ratio(tokens.sequence_gap + own_N), tokens.advantage, objective)


def cispo(logprob_N: Tensor, tokens: PolicyTokens, objective: PolicyObjective) -> Gain:
    """Held ratio times A logprob, without a gradient through the ratio (CISPO, arXiv 2506.13585, eq. 4 and 5).

    No token loses its gradient, however far its ratio has gone.
    """
    ratio_N = _ratio(logprob_N.detach() - tokens.behaviour)
    limited_N = ratio_N.clamp(1.0 - objective.clip_low, 1.0 + objective.clip_high)
    return Gain(limited_N * tokens.advantage * logprob_N, ratio_N, limited_N != ratio_N)


def reinforce(logprob_N: Tensor, tokens: PolicyTokens, _objective: PolicyObjective) -> Gain:
    """Return A logprob (Williams 1992): no ratio and no clip, so right for the policy's own samples alone."""
    ratio_N = _ratio(logprob_N.detach() - tokens.behaviour)
    return Gain(tokens.advantage * logprob_N, ratio_N, torch.zeros_like(ratio_N, dtype=torch.bool))


SURROGATES: dict[str, Surrogate] = {"clip": clip, "gspo": gspo, "cispo": cispo, "reinforce": reinforce}
"""By name, as `PolicyObjective.surrogate` has it."""


def _ratio(log_ratio_N: Tensor) -> Tensor:
    return torch.exp(log_ratio_N.clamp(max=LARGEST_LOG_RATIO))


def _clipped(ratio_N: Tensor, advantage_N: Tensor, objective: PolicyObjective) -> Gain:
    # Within the clips both products are equal: `minimum` halves the gradient between them, and clamp passes its half on
    # whole.
    limited_N = ratio_N.clamp(1.0 - objective.clip_low, 1.0 + objective.clip_high)
    free_N, value_N = ratio_N * advantage_N, torch.minimum(ratio_N * advantage_N, limited_N * advantage_N)
    if objective.dual_clip is not None:
        # Only where the advantage is negative: there the clip holds small ratios alone, and a large one would rule.
        floor_N = torch.where(advantage_N < 0, objective.dual_clip * advantage_N, float("-inf"))
        # Not `maximum`, which would halve the gradient of a tie with what has none.
        held_N = value_N < floor_N
        value_N = torch.where(held_N, floor_N, value_N)
        return Gain(value_N, ratio_N, held_N | (limited_N * advantage_N < free_N))
    # Strictly less: within the clips both sides are one number.
    return Gain(value_N, ratio_N, limited_N * advantage_N < free_N)
