"""Measures on words that need no model: what a text states, how much it repeats, how much it copies.

Words, numbers and capitals are read; markup is not expected. Made for scripts that separate words and have capitals;
for others the measures find nothing and so never punish.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from synpro_engine.data.word_pattern import WORD

_WORD = re.compile(rf"{WORD}(?:['\u2019.,]{WORD})*")
_NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
_SENTENCE_START = re.compile(r"(?:^|[.!?:;\n\u2026][\"'\u2019\u201d)\]]*\s+|[-*\u2022\"\u201c(\[]\s*)$")
_SMALL = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
    "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen", "twenty",
)  # fmt: skip
_TENS = {"thirty": 30, "forty": 40, "fifty": 50, "sixty": 60, "seventy": 70, "eighty": 80, "ninety": 90}
_SPELT = {word: str(value) for value, word in enumerate(_SMALL)} | {word: str(n) for word, n in _TENS.items()}


class Placed(NamedTuple):
    """A word or a number in a form that can be compared, and which characters of the text spell it."""

    plain: str
    start: int
    end: int


def words(text: str) -> list[str]:
    """The words of `text`, without case and possessive endings."""
    return [word.plain for word in placed_words(text)]


def placed_words(text: str) -> Iterator[Placed]:
    """`words` with their places, in order."""
    return (Placed(_plain(match.group()), *match.span()) for match in _WORD.finditer(text))


def _plain(word: str) -> str:
    return re.sub(r"['\u2019]s$", "", word.casefold())


def _number(text: str) -> str:
    """A number without its thousands separators and closing zeros: 1,000 and 1000.0 are equal."""
    digits = re.sub(r",(?=\d{3}\b)", "", text)
    return digits.rstrip("0").rstrip(".") if "." in digits else digits


def is_number(fact: str) -> bool:
    """Whether one of `stated_facts` is a number."""
    return fact[:1].isdigit()


def stated_facts(text: str) -> set[str]:
    """Numbers and capitalised words that do not begin a sentence, in a form that can be compared."""
    return {fact.plain for fact in _placed_facts(text)}


def _placed_facts(text: str) -> Iterator[Placed]:
    """Each mention of a fact: the numbers, then the names."""
    for match in _NUMBER.finditer(text):
        yield Placed(_number(match.group()), *match.span())
    for match in _WORD.finditer(text):
        word, at = match.group(), match.start()
        # The capital of a sentence's first word says nothing; a few characters before it show whether one begins.
        if len(word) > 1 and word[0].isupper() and at and not _SENTENCE_START.search(text, max(0, at - 8), at):
            yield Placed(_plain(word), *match.span())


def unsupported(text: str, source: str) -> set[str]:
    """`text`'s numbers and names that `source` lacks, as `stated_facts` gives them.

    Small numbers may be spelt out on either side. A name counts as supported when the source has the word in
    any case, so that a change of capitals alone is no invention.
    """
    facts = stated_facts(text)
    if not facts:
        return facts
    known = set(words(source)) | {_number(match.group()) for match in _NUMBER.finditer(source)}
    known |= {_SPELT[word] for word in known if word in _SPELT}
    known |= {word for word, digits in _SPELT.items() if digits in known}
    return facts - known


def unsupported_places(text: str, source: str) -> list[Placed]:
    """The words of `text`, in order, that are or hold a number or name that is `unsupported`."""
    missing = unsupported(text, source)
    starts = sorted(fact.start for fact in _placed_facts(text) if fact.plain in missing)
    return [word for word in placed_words(text) if bisect_left(starts, word.start) < bisect_left(starts, word.end)]


def unsupported_share(text: str, source: str) -> float:
    """The share of `text`'s numbers and names that are `unsupported`, in [0, 1]; 0 when it states none."""
    return len(unsupported(text, source)) / max(1, len(stated_facts(text)))


def distinct_ngrams(text: str, n: int = 3) -> float:
    """Distinct word n-grams over all of them, in [0, 1]: 1 without repetition, near 0 in a loop, 0 for no words."""
    tokens = words(text)
    if not tokens:
        return 0.0
    n = min(n, len(tokens))
    grams = [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]
    return len(set(grams)) / len(grams)


def common_subsequence(a: Sequence[str], b: Sequence[str]) -> int:
    """Length of the longest common subsequence, in len(a) operations on integers of len(b) bits.

    The bit-parallel recurrence of Hyyro (2004): a zero bit in `row` marks a step of the dynamic programme.
    """
    positions: dict[str, int] = {}
    for i, word in enumerate(b):
        positions[word] = positions.get(word, 0) | 1 << i
    full = (1 << len(b)) - 1
    row = full
    for word in a:
        matches = row & positions.get(word, 0)
        row = (row + matches | row - matches) & full
    return len(b) - row.bit_count()


def rouge_l_precision(text: str, source: str) -> float:
    """The share of `text`'s words that stand in `source` in the same order (ROUGE-L precision, Lin 2004)."""
    tokens = words(text)
    return common_subsequence(tokens, words(source)) / len(tokens) if tokens else 0.0
