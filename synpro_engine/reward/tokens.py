"""A text's tokens and words with their embeddings, and the parts that it falls into.

Shape suffixes: T tokens, W words, E embedding.
"""

from __future__ import annotations

import re
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from synpro_engine.data.word_pattern import WORD

Vectors = NDArray[np.float32]
Places = NDArray[np.int64]

_CLAUSE = re.compile(r"(?<=[.!?;:])[\"'\u2019\u201d)\]]*\s+|\n+")
_WORD = re.compile(rf"\d+(?:[.,]\d+)*|{WORD}(?:['\u2019]{WORD})*")
_STOP = frozenset(
    "a about after all also an and any are as at be because been before being both but by can could did do does during"
    " each for from had has have he her here him his how i if in into is it its may me might more most must my no not"
    " of on one or other our out over shall she should so some such than that the their them then there these they this"
    " those through to too under up upon us very was we were what when where which while who whom whose why will with"
    " would you your called known name type kind".split()
)
_LIMITS = frozenset(
    "not no never none nor neither nothing nobody cannot without hardly scarcely barely almost nearly except unless"
    " only".split()
)
_STEM = 5  # letters: enough to find a word in another of its forms


class Tokens(NamedTuple):
    """A text with its tokens' unit-length embeddings [T, E] and where each begins, in characters [T]."""

    text: str
    vectors_TE: Vectors
    starts_T: Places


class Words(NamedTuple):
    """A text's words in order, those that have tokens."""

    said: list[str]
    """As they stand in the text."""
    starts_W: Places
    """In characters."""
    stems: list[str]
    content_W: NDArray[np.bool_]
    """Which of them carry meaning."""
    limits_W: NDArray[np.bool_]
    """Which of them turn or narrow what is said: not, only, almost ..."""
    clause_W: Places
    """The clause of each, from 0."""
    vectors_WE: Vectors
    """Of unit length: the mean of a word's tokens."""


def is_content(word: str) -> bool:
    """Whether a word carries meaning by itself."""
    return word.casefold() not in _STOP


def stem(word: str) -> str:
    """A word's beginning, by which it is found in another of its forms; a number as it is, without its commas."""
    if word[0].isdigit():
        return word.replace(",", "")
    return re.sub(r"['\u2019]s$", "", word.casefold())[:_STEM]


def is_limit(word: str) -> bool:
    """Whether a word turns or narrows what is said."""
    plain = word.casefold()
    return plain in _LIMITS or plain.endswith(("n't", "n\u2019t"))


def clauses(text: str) -> list[tuple[int, str]]:
    """Parts between full stops, colons and line breaks with where they begin; at least one."""
    cuts = [0, *(match.end() for match in _CLAUSE.finditer(text)), len(text)]
    found = [(a, text[a:b]) for a, b in pairwise(cuts) if text[a:b].strip()]
    return found or [(0, text)]


def words_of(tokens: Tokens) -> Words:
    """The words of a text that has tokens."""
    spans = [(match.start(), match.end()) for match in _WORD.finditer(tokens.text)]
    bounds_W2 = np.searchsorted(tokens.starts_T, np.array(spans, np.int64).reshape(-1, 2))
    spans = [span for span, (a, b) in zip(spans, bounds_W2, strict=True) if b > a]
    bounds_W2 = bounds_W2[bounds_W2[:, 1] > bounds_W2[:, 0]]
    said = [tokens.text[a:b] for a, b in spans]
    begins = np.array([at for at, _ in clauses(tokens.text)])
    starts_W = np.array([a for a, _ in spans], np.int64)
    summed_TE = np.concatenate([np.zeros_like(tokens.vectors_TE[:1]), tokens.vectors_TE.cumsum(0)])
    vectors_WE = summed_TE[bounds_W2[:, 1]] - summed_TE[bounds_W2[:, 0]]
    return Words(
        said=said,
        starts_W=starts_W,
        stems=[stem(word) for word in said],
        content_W=np.array([is_content(word) for word in said], bool),
        limits_W=np.array([is_limit(word) for word in said], bool),
        clause_W=np.maximum(np.searchsorted(begins, starts_W, side="right") - 1, 0),
        vectors_WE=vectors_WE / np.maximum(np.linalg.norm(vectors_WE, axis=1, keepdims=True), 1e-9),
    )
