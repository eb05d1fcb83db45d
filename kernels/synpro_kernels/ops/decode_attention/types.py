"""What the ops of a decoding step are told: which rows live, how far they are filled, and how heads are normed."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class DecodeRows:
    """B live rows in G groups of at most M members, on one device.

    row_of_place [G * M] int64: the row at each place (any row at empty places: what is computed there is never read);
    place_of_row_B int64: its inverse, group times M and member. prompt_length_G and new_length_B int64, both at least
    1: how many positions of a group's prompt and of a row are filled; `prompt_longest`, `new_longest`: the largest;
    `ragged_prompts` and `ragged_new`: whether they differ, so that a mask is needed.
    """

    row_of_place: Tensor
    place_of_row_B: Tensor
    prompt_length_G: Tensor
    new_length_B: Tensor
    prompt_longest: int
    new_longest: int
    ragged_prompts: bool
    ragged_new: bool

    @property
    def members(self) -> int:
        """M, the places of a group."""
        return len(self.row_of_place) // len(self.prompt_length_G)

    @cached_property
    def prompt_bias(self) -> Tensor | None:
        """Additive mask [G, 1, 1, prompt_longest] fp32, -inf beyond each prompt; None where all are as long."""
        return _beyond(self.prompt_length_G, self.prompt_longest) if self.ragged_prompts else None

    @cached_property
    def new_bias(self) -> Tensor | None:
        """Additive mask [B, 1, 1, new_longest] fp32, -inf beyond each row; None where all are as long."""
        return _beyond(self.new_length_B, self.new_longest) if self.ragged_new else None


def _beyond(length_N: Tensor, longest: int) -> Tensor:
    beyond = torch.arange(longest, device=length_N.device) >= length_N[:, None]
    return torch.zeros(beyond.shape, device=length_N.device).masked_fill_(beyond, float("-inf"))[:, None, None]


@dataclass(frozen=True, kw_only=True)
class HeadNorm:
    """RMSNorm of queries and of keys before the rotation: over each head, weights [h], or over all heads' width.

    Then weights are [n r h] and [n h], and `means_B2`, fp32, may hold the mean squares of a row's queries and of its
    keys: where other ranks have heads too.
    """

    query_weight: Tensor
    key_weight: Tensor
    eps: float
    by_head: bool
    means_B2: Tensor | None = None
