"""Rotation by position and one-query attention over the cache, as plain functions.

Attention is computed in fp32 whatever the cache's dtype.

Shape suffixes: B live rows, n key heads, r query heads per key head, h head width, T time; N and Q are any rows and
queries.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from synpro_engine.sampler.cache import Places


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn each pair (i, i + h/2) of the last dimension by its angle."""
    first, second = x.chunk(2, -1)
    return x * cos + torch.cat((-second, first), -1) * sin


def _attend(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    """Attention and the log of its softmax sum: query [N, n, Q, h], key and value [N, n, T, h], in fp32.

    Returns out [N, n, Q, h] and log_sum [N, n, Q, 1]. For a few queries per key this beats the fused kernel on
    the CPU and, unlike it, gives the log-sum. The largest weight is 1/sum, hence its log is minus the log-sum's rest.
    """
    score = query.float() @ key.float().mT
    if bias is not None:
        score += bias
    weight = torch.softmax(score, -1)
    log_sum = score.amax(-1, keepdim=True) - weight.amax(-1, keepdim=True).log()
    return weight @ value.float(), log_sum


def attend_in_two(
    query_Bnrh: Tensor,
    prompt: tuple[Tensor, Tensor],
    recent: tuple[Tensor, Tensor],
    places: Places,
    prompt_bias: Tensor | None,
    new_bias: Tensor | None,
) -> Tensor:
    """Attention over prompt and new positions, each softmaxed alone and merged by their log-sums; [B, n, r, h].

    All members of a group ask the prompt's keys together, so they are read once per group, not once per member.
    """
    n, r, h = query_Bnrh.shape[1:]
    query_Bnrh = query_Bnrh * (1.0 / math.sqrt(h))
    groups = places.groups
    asked = query_Bnrh.index_select(0, places.row_of_place).unflatten(0, (groups, -1))
    asked = asked.transpose(1, 2).reshape(groups, n, -1, h)
    prompt_out, prompt_sum = (
        part.unflatten(2, (-1, r)).transpose(1, 2).flatten(0, 1).index_select(0, places.place_of_row_B)
        for part in _attend(asked, *prompt, prompt_bias)
    )
    new_out, new_sum = _attend(query_Bnrh, *recent, new_bias)
    return torch.lerp(new_out, prompt_out, torch.sigmoid(prompt_sum - new_sum))
