"""Decoding steps laid out for the device: which tokens are fed, where they stand, and which pages they see."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from synpro_engine.sampler.cache import PAGE, page_table
from synpro_engine.sampler.decode import Step
from synpro_kernels import DecodeRows, Slots


class Fed(NamedTuple):
    """Tokens that a sequence is fed, the first at place `first` behind its group's prompt.

    `last` is the last place that it may have, and `pages`, those of its own positions, reach as far as it is fed.
    """

    group: int
    pages: Sequence[int]
    tokens: Sequence[int]
    first: int
    last: int


class PromptPages(NamedTuple):
    """A group's prompt: its tokens and the pages that hold them."""

    length: int
    pages: Sequence[int]


class Stride(NamedTuple):
    """Decoding steps one behind the other: the first is fed token_B int64, each further one what its last gave."""

    token_B: Tensor
    steps: list[Step]


def lay_out(fed: Sequence[Fed], prompts: Sequence[PromptPages], device: torch.device, steps: int = 1) -> Stride:
    """Steps for these sequences, one place further each; each group of `prompts` has one sequence at least.

    All but the tokens is known before the first of them. A sequence that is at its last place stays there, where it has
    pages; what follows that is no part of it.
    """
    rows = [(sequence, one, at) for sequence, one in enumerate(fed) for at in range(len(one.tokens))]
    places = [[min(one.first + at + step, one.last) for _, one, at in rows] for step in range(steps)]
    lengths, most = [prompt.length for prompt in prompts], max(len(one.tokens) for one in fed)
    owners = [one for _, one, _ in rows] * steps
    flat_places = [place for its in places for place in its]
    parts: list[Sequence[int]] = [
        [one.tokens[at] for _, one, at in rows],
        # Positions go on from a prompt's real length; the rest of its last page has none.
        [lengths[one.group] + place for one, place in zip(owners, flat_places, strict=True)],
        [one.pages[place // PAGE] for one, place in zip(owners, flat_places, strict=True)],
        [place % PAGE for place in flat_places],
        [place + 1 for place in flat_places],
        *_places([one.group for _, one, _ in rows], len(prompts)),
        lengths,
        page_table([prompt.pages for prompt in prompts]),
        page_table([one.pages for one in fed]),
        *(_places([sequence for sequence, _, _ in rows], len(fed)) if most > 1 else ()),
    ]
    # One copy to the device: the host waits for each.
    flat = torch.tensor([number for part in parts for number in part], device=device)
    token, position, page, time, seen, row_of_place, place_of_row, length_G, prompts_GX, new_SY, *slots = flat.split(
        [len(part) for part in parts]
    )
    by_step = zip(*(part.view(steps, -1) for part in (position, page, time, seen)), places, strict=True)
    return Stride(
        token,
        [
            Step(
                position_B=position_B,
                page_B=page_B,
                time_B=time_B,
                rows=DecodeRows(
                    row_of_place=row_of_place,
                    place_of_row_B=place_of_row,
                    prompt_length_G=length_G,
                    prompt_page_GX=prompts_GX.view(len(prompts), -1),
                    prompt_longest=max(lengths),
                    ragged_prompts=min(lengths) < max(lengths),
                    new_length_B=seen_B,
                    new_page_SY=new_SY.view(len(fed), -1),
                    new_longest=max(place) + 1,
                    ragged_new=min(place) < max(place),
                    slots=Slots(row_of_slot=slots[0], slot_of_row_B=slots[1], fed=most) if slots else None,
                ),
            )
            for position_B, page_B, time_B, seen_B, place in by_step
        ],
    )


def _places(owner_of_row: Sequence[int], owners: int) -> tuple[list[int], list[int]]:
    """As many places for each owner as the one with most rows has: the row at each place, and each row's place."""
    count, number = [0] * owners, list[int]()
    for owner in owner_of_row:
        number.append(count[owner])
        count[owner] += 1
    most = max(count)
    place_of_row = [owner * most + own for owner, own in zip(owner_of_row, number, strict=True)]
    # An empty place holds row 0: what is computed there is not read back.
    row_of_place = [0] * (owners * most)
    for row, place in enumerate(place_of_row):
        row_of_place[place] = row
    return row_of_place, place_of_row
