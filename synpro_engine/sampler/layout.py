"""A decoding step laid out for the device: which tokens are fed, where they stand, and which pages they see."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from synpro_engine.sampler.cache import PAGE, page_table
from synpro_engine.sampler.decode import Step
from synpro_kernels import DecodeRows, Slots


class Fed(NamedTuple):
    """Tokens that a sequence is fed, the first at place `first` behind its group's prompt.

    `pages` are those of the sequence's own positions, and reach to the last of these tokens at least.
    """

    group: int
    pages: Sequence[int]
    tokens: Sequence[int]
    first: int


class PromptPages(NamedTuple):
    """A group's prompt: its tokens and the pages that hold them."""

    length: int
    pages: Sequence[int]


def lay_out(fed: Sequence[Fed], prompts: Sequence[PromptPages], device: torch.device) -> Step:
    """One step for these sequences; each group of `prompts` has one at least."""
    rows = [(sequence, one, at) for sequence, one in enumerate(fed) for at in range(len(one.tokens))]
    place = [one.first + at for _, one, at in rows]
    lengths, most = [prompt.length for prompt in prompts], max(len(one.tokens) for one in fed)
    parts: list[Sequence[int]] = [
        [one.tokens[at] for _, one, at in rows],
        # Positions go on from a prompt's real length; the rest of its last page has none.
        [lengths[one.group] + new for (_, one, _), new in zip(rows, place, strict=True)],
        [one.pages[new // PAGE] for (_, one, _), new in zip(rows, place, strict=True)],
        [new % PAGE for new in place],
        [new + 1 for new in place],
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
    longest = max(place) + 1
    return Step(
        token_B=token,
        position_B=position,
        page_B=page,
        time_B=time,
        rows=DecodeRows(
            row_of_place=row_of_place,
            place_of_row_B=place_of_row,
            prompt_length_G=length_G,
            prompt_page_GX=prompts_GX.view(len(prompts), -1),
            prompt_longest=max(lengths),
            ragged_prompts=min(lengths) < max(lengths),
            new_length_B=seen,
            new_page_SY=new_SY.view(len(fed), -1),
            new_longest=longest,
            ragged_new=min(place) + 1 < longest,
            slots=Slots(row_of_slot=slots[0], slot_of_row_B=slots[1], fed=most) if slots else None,
        ),
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
