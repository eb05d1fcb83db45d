"""How much better a completion is than the others of its group.

Shape suffixes: P prompts, G completions of each, K rewards. All arithmetic is fp64: a group's standard deviation may be
tiny beside its mean.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

# Added to a standard deviation before dividing by it, so that rounding noise is not blown up to an advantage of 1.
STD_EPSILON = 1e-4


def group_advantages(reward_PG: Tensor, *, std_normalisation: bool = True) -> Tensor:
    """Reward minus the group's mean, over the group's standard deviation; fp64 [P, G].

    A_i = (r_i - mean(r)) / (std(r) + 1e-4), std with divisor G (GRPO, arXiv 2402.03300, eq. 3); without
    `std_normalisation` only the mean is taken off (Dr. GRPO, arXiv 2503.20783). Groups of equal rewards give
    exactly 0: the mean of equal numbers may differ from them in the last bit, which must teach nothing. Rewards are
    finite: one NaN would be every advantage of its group, and by the batch's scale of all others.
    """
    assert bool(torch.isfinite(reward_PG).all()), "a reward is not finite; its group must be left out before"
    reward_PG = reward_PG.double()
    advantage_PG = reward_PG - reward_PG.mean(-1, keepdim=True)
    if std_normalisation:
        advantage_PG = advantage_PG / (reward_PG.std(-1, correction=0, keepdim=True) + STD_EPSILON)
    equal_P1 = reward_PG.amax(-1, keepdim=True) == reward_PG.amin(-1, keepdim=True)
    return advantage_PG.masked_fill(equal_P1, 0.0)


def per_reward_advantages(
    part_PG: Mapping[str, Tensor], weights: Mapping[str, float], *, std_normalisation: bool = True
) -> Tensor:
    """Each reward compared within its group first, then summed by weight and brought to unit scale; fp64 [P, G].

    A = sum_k w_k A_k, divided by the root mean square of A over the batch (GDPO, arXiv 2601.05242). Its mean
    needs no subtraction: each group's advantages sum to 0. The batch is the whole job's, not one rank's.
    """
    assert part_PG, "no rewards to compare"
    advantage_PG = torch.stack(
        [
            weights[name] * group_advantages(reward_PG, std_normalisation=std_normalisation)
            for name, reward_PG in part_PG.items()
        ]
    ).sum(0)
    if std_normalisation:
        advantage_PG = advantage_PG / (advantage_PG.square().mean().sqrt() + STD_EPSILON)
    return advantage_PG
