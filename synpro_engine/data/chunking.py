"""Long documents cut at natural boundaries, and a corpus capped to a budget.

Documents are cut by characters. A corpus is capped in whatever unit the caller's function counts (tokens, say).
"""

from __future__ import annotations

import heapq
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Protocol, TypeVar

from synpro_engine.config import UserError
from synpro_engine.data.documents import Document
from synpro_engine.data.hashing import stable_hash

# Best boundary first: paragraph, line, sentence, word.
_BOUNDARIES = tuple(re.compile(pattern) for pattern in (r"\n\s*\n", r"\n", r"[.!?][\"')\]]*\s+", r"\s+"))


class Named(Protocol):
    """What is chosen by its id alone: a document as text or as tokens."""

    @property
    def id(self) -> str:
        """Unique in its corpus."""
        ...


_D = TypeVar("_D", bound=Named)


def cut_spans(
    text: str, most: int, *, size_of: Callable[[str], int] | None = None, overlap: float = 0.0
) -> list[tuple[int, int]]:
    """Return consecutive [start, end) spans of at most `most` characters that cover `text` exactly.

    Each span ends after the last paragraph break that fits; where none falls in its second half, after a line,
    a sentence, a word, and at last in mid-word.

    size_of: what `most` counts in place of characters (tokens, say); at least one character is in each span in any
    case. overlap: share of a span, below a half, that the next one begins with again, from a sentence's beginning.
    """
    assert most > 0 and 0 <= overlap < 0.5
    spans, start, chars = [], 0, most
    while start < len(text):
        chars = most if size_of is None else _fitting(text, start, most, size_of, chars)
        end = len(text) if len(text) - start <= chars else _boundary(text, start, chars)
        spans.append((start, end))
        start = end if end == len(text) or not overlap else _sentence(text, end - int(overlap * (end - start)), end)
    return spans


def _fitting(text: str, start: int, most: int, size_of: Callable[[str], int], chars: int) -> int:
    """How many characters from `start` on are of a size of at most `most`, and not of much less; `chars`: a guess."""
    fits = 1
    # Each look halves what is between too few and too many, or ends the search: a handful do.
    while True:
        piece = text[start : start + chars]
        size = size_of(piece)
        if size <= most:
            fits = max(fits, len(piece))
            if len(piece) == len(text) - start or size >= 0.9 * most:
                return fits
            wider = min(2 * chars, int(chars * most / max(size, 1)))
        else:
            wider = min(chars - 1, int(0.97 * chars * most / size))
        if wider <= fits:
            return fits
        chars = wider


def _sentence(text: str, first: int, end: int) -> int:
    """Where a sentence, or at least a word, begins between `first` and `end`; `end` where none does."""
    for pattern in _BOUNDARIES[2:]:
        match = pattern.search(text, first, end)
        if match and match.end() < end:
            return match.end()
    return end


def _boundary(text: str, start: int, max_chars: int) -> int:
    limit = start + max_chars
    for pattern in _BOUNDARIES:
        # A break in the first half would leave splinters, so a lesser kind of break is tried instead.
        ends = [match.end() for match in pattern.finditer(text, start + max_chars // 2, limit)]
        if ends:
            return ends[-1]
    return limit


def chunk_documents(documents: Iterable[Document], max_chars: int) -> Iterator[Document]:
    """Yield the parts of each document as documents `<id>#<n>`, n from 0; joined, their texts are the original.

    A short document gets `#0` as well: were it left alone, its id could equal a part's id of another document.
    A part of white space only is joined to the part before it, so it may pass `max_chars` by that much.
    """
    for document in documents:
        parts: list[str] = []
        for start, end in cut_spans(document.text, max_chars):
            # White space alone is no document, and must still not be lost: joined, the parts are the text.
            part = document.text[start:end]
            if parts and (not part.strip() or not parts[-1].strip()):
                parts[-1] += part
            else:
                parts.append(part)
        yield from (Document(f"{document.id}#{number}", part, document.source) for number, part in enumerate(parts))


def cap_documents(documents: Iterable[_D], budget: int, seed: int, size_of: Callable[[_D], int]) -> list[_D]:
    """Return the documents that come first in the hash order of (seed, id), as many as fit `budget`.

    `size_of` gives a document's cost in the budget's unit, at least 1 (tokens, characters; 1 to cap the count).
    The result is in hash order and does not depend on the order of `documents`, which is read once; no more
    than `budget` is held in memory. Raises UserError when not even the first document fits.
    """
    first_ones: list[tuple[int, str, int, _D]] = []  # a heap with the last document of the order on top
    ceiling, total = 2**64, 0
    for document in documents:
        # By id and not by place, so that other files, or the same in another order, leave the choice as it is.
        order = stable_hash(seed, "cap", document.id)
        # What follows a document that did not fit stays out, however small: the result is a prefix without holes.
        if order >= ceiling:
            continue
        size = size_of(document)
        assert size > 0
        # Negated, since heapq's top is the smallest: the document to give up first must be on top. The id behind it
        # decides between equal hashes, so that documents themselves are never compared.
        heapq.heappush(first_ones, (-order, document.id, size, document))
        total += size
        # A large document may push several smaller ones out, and itself too where it comes last in the order.
        while total > budget:
            negative, _, size, _ = heapq.heappop(first_ones)
            ceiling, total = -negative, total - size
    if not first_ones:
        raise UserError(f"a budget of {budget} holds not one document; raise it or cut the documents smaller")
    return [document for *_, document in sorted(first_ones, key=lambda item: -item[0])]
