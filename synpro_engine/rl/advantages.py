"""How much better than usual a completion, or a token of it, was.

Shape suffixes: P prompts, G completions of each, R completions, T their tokens, padded on the right. All arithmetic is
fp64: a group's standard deviation may be tiny beside its mean.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

# Added to a standard deviation before dividing by it, so that rounding noise is not blown up to an advantage of 1.
STD_EPSILON = 1e-4


def group_advantages(
    reward_PG: Tensor,
    *,
    baseline: Literal["group", "leave_one_out"] = "group",
    scaled: bool = True,
    correction: int = 0,
) -> Tensor:
    """Reward less the group's mean, or less the others' mean, over the group's standard deviation; fp64 [P, G].

    group: A_i = (r_i - mean(r)) / (std(r) + 1e-4), std with divisor G - correction (GRPO, arXiv 2402.03300, eq. 3).
    leave_one_out: r_i less the mean of the other G - 1 (RLOO, arXiv 2402.14740), which is G / (G - 1) times the same.
    scaled: divide by the deviation; Dr. GRPO (arXiv 2503.20783) does not. Groups of equal rewards give exactly 0: the
    mean of equal numbers may differ from them in the last bit, which must teach nothing. Rewards are finite: one NaN
    would be every advantage of its group, and by the batch's scale of all others.
    """
    assert bool(torch.isfinite(reward_PG).all()), "a reward is not finite; its group must be left out before"
    reward_PG = reward_PG.double()
    advantage_PG = reward_PG - reward_PG.mean(-1, keepdim=True)
    if baseline == "leave_one_out":
        group = reward_PG.shape[-1]
        advantage_PG = advantage_PG * (group / (group - 1))
    if scaled:
        advantage_PG = advantage_PG / (reward_PG.std(-1, correction=correction, keepdim=True) + STD_EPSILON)
    equal_P1 = reward_PG.amax(-1, keepdim=True) == reward_PG.amin(-1, keepdim=True)
    return advantage_PG.masked_fill(equal_P1, 0.0)


def per_reward_advantages(
    part_PG: Mapping[str, Tensor], weights: Mapping[str, float], *, scaled: bool = True, correction: int = 0
) -> Tensor:
    """Each reward compared within its group first, then summed by weight and brought to unit scale; fp64 [P, G].

    A = sum_k w_k A_k, divided by the root mean square of A over the batch (GDPO, arXiv 2601.05242). Its mean
    needs no subtraction: each group's advantages sum to 0. The batch is the whole job's, not one rank's.
    """
    assert part_PG, "no rewards to compare"
    advantage_PG = torch.stack(
        [
            weights[name] * group_advantages(reward_PG, scaled=scaled, correction=correction)
            for name, reward_PG in part_PG.items()
        ]
    ).sum(0)
    if scaled:
        advantage_PG = advantage_PG / (advantage_PG.square().mean().sqrt() + STD_EPSILON)
    return advantage_PG


def returns_to_go(reward_RT: Tensor, gamma: float = 1.0) -> Tensor:
    """G_t = r_t + gamma G_{t+1}: what is still to come at each token; fp64 [R, T]. Behind its end a row holds 0."""
    future_R, found = torch.zeros(len(reward_RT), dtype=torch.float64), []
    for reward_R in reversed(reward_RT.double().unbind(1)):
        future_R = reward_R + gamma * future_R
        found.append(future_R)
    return torch.stack(found[::-1], 1) if found else reward_RT.double()


def gae(reward_RT: Tensor, value_RT: Tensor, *, gamma: float, gae_lambda: float) -> Tensor:
    """Generalised advantage estimation (Schulman et al. 2015, arXiv 1506.02438, eq. 16); fp64 [R, T].

    A_t = sum_l (gamma lambda)^l delta_{t+l}, delta_t = r_t + gamma V_{t+1} - V_t. Behind its end a row holds 0 in both:
    a completion that was cut off ends there, too.
    """
    value_RT = value_RT.double()
    delta_RT = reward_RT.double() + gamma * torch.nn.functional.pad(value_RT[:, 1:], (0, 1)) - value_RT
    return returns_to_go(delta_RT, gamma * gae_lambda)


def overlong_penalty(length: int, longest: int, buffer: float, penalty: float) -> float:
    """DAPO's soft punishment (arXiv 2503.14476, eq. 13): from 0 to -penalty over the last `buffer` of `longest`."""
    beyond = length - (1.0 - buffer) * longest
    return -penalty * min(1.0, max(0.0, beyond) / (buffer * longest))
