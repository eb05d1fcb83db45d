"""What the ops of a decoding step are told: which rows live, how far they are filled, and how heads are normed."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Slots:
    """Rows by sequence, of which each is fed at most `fed` tokens at once.

    row_of_slot [S * fed] int64: the row at each slot (any row at empty ones: what is computed there is never read);
    slot_of_row_B int64: its inverse, sequence times `fed` and token.
    """

    row_of_slot: Tensor
    slot_of_row_B: Tensor
    fed: int

    @cached_property
    def sequence_of_row_B(self) -> Tensor:
        """Each row's sequence, int64."""
        return self.slot_of_row_B // self.fed


@dataclass(frozen=True, kw_only=True)
class DecodeRows:
    """B live rows in G groups of at most M members, on one device.

    row_of_place [G * M] int64: the row at each place (any row at empty places: what is computed there is never read);
    place_of_row_B int64: its inverse, group times M and member. prompt_length_G and new_length_B int64, both at least
    1: how many positions of a group's prompt and of a row are filled; `prompt_longest`, `new_longest`: the largest;
    `ragged_prompts` and `ragged_new`: whether they differ, so that a mask is needed.

    prompt_page_GX and new_page_SY int64: the pages of a group's prompt and of a sequence's new positions, in order, all
    of them filled but the last; behind it stands the number of any page, whose values have a weight of 0.

    A sequence that is fed several tokens at once has a row for each, of which each sees what stands before it and
    itself: its `new_length_B`. `slots` says whose rows they are; None: row b is sequence b.
    """

    row_of_place: Tensor
    place_of_row_B: Tensor
    prompt_length_G: Tensor
    prompt_page_GX: Tensor
    new_length_B: Tensor
    new_page_SY: Tensor
    prompt_longest: int
    new_longest: int
    ragged_prompts: bool
    ragged_new: bool
    slots: Slots | None = None

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
        """Additive mask fp32, -inf beyond each row; None where all are as long.

        [B, 1, 1, new_longest], or with slots [S, 1, fed, new_longest].
        """
        if not self.ragged_new:
            return None
        if self.slots is None:
            return _beyond(self.new_length_B, self.new_longest)
        beyond = _beyond(self.new_length_B.index_select(0, self.slots.row_of_slot), self.new_longest)
        return beyond.view(-1, 1, self.slots.fed, self.new_longest)


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
