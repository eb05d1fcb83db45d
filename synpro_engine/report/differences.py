"""What a generated text and its source do not share: words, and claims of the text that the source does not have.

A claim is a number or a name (`reward.unsupported_places`): what is easily checked, and not all that can be wrong.
"""

import re
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from itertools import islice
from typing import Literal, NamedTuple

from synpro_engine.reward import placed_words, unsupported_places

COMPARED_WORDS = 1000
"""Of each text, from its beginning: matching takes time by the product of both lengths, and nobody reads so far."""

Mark = Literal["", "alone", "claim"]
Span = tuple[int, int]
_GAP = re.compile(r"[^\S\n]+")


class Piece(NamedTuple):
    """Characters of a text that are shown alike; `alone`: the other text has not these words there."""

    text: str
    mark: Mark


@dataclass(frozen=True, kw_only=True)
class Compared:
    """A source and the text made from it, in pieces that put together are the texts themselves."""

    source: tuple[Piece, ...]
    text: tuple[Piece, ...]
    claims: int
    """Of the text, that the source lacks, each counted once; a name of several words is one."""
    whole: bool
    """Whether all words were compared; claims always are looked for in all of the text."""


def compared(source: str, text: str) -> Compared:
    """Match the words of both in order (difflib, without case and possessive endings), and look for claims."""
    words = [list(islice(placed_words(each), COMPARED_WORDS + 1)) for each in (source, text)]
    ours, theirs = (found[:COMPARED_WORDS] for found in words)
    # Frequent words are no anchors (autojunk): texts that go in circles would take minutes.
    matcher = SequenceMatcher(None, [word.plain for word in ours], [word.plain for word in theirs])
    alone: tuple[list[Span], list[Span]] = ([], [])
    for kind, a, a_end, b, b_end in matcher.get_opcodes():
        if kind != "equal" and a < a_end:
            alone[0].append((ours[a].start, ours[a_end - 1].end))
        if kind != "equal" and b < b_end:
            alone[1].append((theirs[b].start, theirs[b_end - 1].end))
    claims = _joined(((word.start, word.end) for word in unsupported_places(text, source)), text)
    return Compared(
        source=tuple(_pieces(source, alone[0], [])),
        text=tuple(_pieces(text, alone[1], claims)),
        claims=len({" ".join(text[start:end].casefold().split()) for start, end in claims}),
        whole=all(len(found) <= COMPARED_WORDS for found in words),
    )


def head(pieces: Iterable[Piece], chars: int) -> Iterator[Piece]:
    """The first so many characters of a text."""
    for text, mark in pieces:
        if chars > 0:
            yield Piece(text[:chars], mark)
        chars -= len(text)


def _joined(spans: Iterable[Span], text: str) -> list[Span]:
    """With those as one between which there is but a space, as in a date or a full name."""
    found: list[Span] = []
    for start, end in spans:
        if found and _GAP.fullmatch(text, found[-1][1], start):
            found[-1] = (found[-1][0], end)
        else:
            found.append((start, end))
    return found


def _pieces(text: str, alone: Sequence[Span], claims: Sequence[Span]) -> Iterator[Piece]:
    """All of a text; spans are in order, and a claim is marked as nothing else."""
    marks: dict[Span, Mark] = {span: "alone" for span in _without(alone, claims) if text[slice(*span)].strip()}
    marks |= dict.fromkeys(claims, "claim")
    at = 0
    for (start, end), mark in sorted(marks.items()):
        if at < start:
            yield Piece(text[at:start], "")
        yield Piece(text[start:end], mark)
        at = end
    if at < len(text):
        yield Piece(text[at:], "")


def _without(spans: Sequence[Span], others: Sequence[Span]) -> Iterator[Span]:
    """What of spans lies in none of the others."""
    ends = [end for _, end in others]
    for start, end in spans:
        for low, high in islice(others, bisect_right(ends, start), None):
            if low >= end:
                break
            if start < low:
                yield start, low
            start = high
        if start < end:
            yield start, end
