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


class Sizes(NamedTuple):
    """Of a stride's tensors: rows, groups and places of each, and how wide the tables of pages are."""

    rows: int
    groups: int
    members: int
    prompt_pages: int
    new_pages: int


class Numbers(NamedTuple):
    """A stride on the host: what is alike in all its steps, and its places, a step behind the other."""

    common: list[Sequence[int]]
    """Tokens, row_of_place, place_of_row, and the prompts' lengths and pages, the sequences' pages, and the slots."""
    places: list[Sequence[int]]
    """Of each step positions, pages, times and how much each row sees."""


def lay_out(fed: Sequence[Fed], prompts: Sequence[PromptPages], device: torch.device, steps: int = 1) -> Stride:
    """Steps for these sequences, one place further each; each group of `prompts` has one sequence at least.

    All but the tokens is known before the first of them. A sequence that is at its last place stays there, where it has
    pages; what follows that is no part of it.
    """
    numbers, most = numbers_of(fed, prompts, steps), max(len(one.tokens) for one in fed)
    parts = [*numbers.common, *numbers.places]
    # One copy to the device: the host waits for each.
    flat = torch.tensor([number for part in parts for number in part], device=device)
    token, row_of_place, place_of_row, length_G, prompts_GX, new_SY, *rest = flat.split([len(part) for part in parts])
    slots, rest = rest[: len(numbers.common) - 6], rest[len(numbers.common) - 6 :]
    lengths = [prompt.length for prompt in prompts]
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
                    new_longest=max(seen),
                    ragged_new=min(seen) < max(seen),
                    slots=Slots(row_of_slot=slots[0], slot_of_row_B=slots[1], fed=most) if slots else None,
                ),
            )
            for position_B, page_B, time_B, seen_B, seen in zip(
                rest[::4], rest[1::4], rest[2::4], rest[3::4], numbers.places[3::4], strict=True
            )
        ],
    )


def numbers_of(fed: Sequence[Fed], prompts: Sequence[PromptPages], steps: int, sizes: Sizes | None = None) -> Numbers:
    """What `lay_out` brings over; with `sizes`, no smaller than what is given, tables and places are filled up to them.

    Then a group may be without sequences.
    """
    rows = [(sequence, one, at) for sequence, one in enumerate(fed) for at in range(len(one.tokens))]
    owners = [one for _, one, _ in rows]
    lengths, most = [prompt.length for prompt in prompts], max(len(one.tokens) for one in fed)
    places = list[Sequence[int]]()
    for step in range(steps):
        place = [min(one.first + at + step, one.last) for _, one, at in rows]
        places += [
            # Positions go on from a prompt's real length; the rest of its last page has none.
            [lengths[one.group] + its for one, its in zip(owners, place, strict=True)],
            [one.pages[its // PAGE] for one, its in zip(owners, place, strict=True)],
            [its % PAGE for its in place],
            [its + 1 for its in place],
        ]
    members, prompt_pages, new_pages = sizes[2:] if sizes else (0, 0, 0)
    common: list[Sequence[int]] = [
        [one.tokens[at] for _, one, at in rows],
        *_places([one.group for _, one, _ in rows], len(prompts), members),
        lengths,
        page_table([prompt.pages for prompt in prompts], prompt_pages),
        page_table([one.pages for one in fed], new_pages),
        *(_places([sequence for sequence, _, _ in rows], len(fed)) if most > 1 else ()),
    ]
    return Numbers(common, places)


def _places(owner_of_row: Sequence[int], owners: int, least: int = 0) -> tuple[list[int], list[int]]:
    """As many places for each owner as the one with most rows has, `least` at least: the row at each, each row's."""
    count, number = [0] * owners, list[int]()
    for owner in owner_of_row:
        number.append(count[owner])
        count[owner] += 1
    most = max(least, *count)
    place_of_row = [owner * most + own for owner, own in zip(owner_of_row, number, strict=True)]
    # An empty place holds row 0: what is computed there is not read back.
    row_of_place = [0] * (owners * most)
    for row, place in enumerate(place_of_row):
        row_of_place[place] = row
    return row_of_place, place_of_row
