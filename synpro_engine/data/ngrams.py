"""Words of texts, and their n-grams as 64-bit keys that are the same in every process.

A word is a run of letters, digits and apostrophes with the marks on them (the vowel signs of Indic scripts, Arabic's,
accents), without case; in scripts that put no spaces between words (Chinese, Japanese, Thai, Lao, Khmer, Burmese) each
character is one.
"""

import functools
import re
import sys
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from synpro_engine.data.encoding import batched

Keys = npt.NDArray[np.uint64]

_UNSPACED = (
    r"\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
)
_NONE, _LETTER, _MARK, _WHOLE = range(4)  # between words, in a word, in one behind a letter, a word by itself
_ODD_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
_MIXER = np.uint64(0xBF58476D1CE4E5B9)
_BLOCK_CHARS = 1 << 16
"""Characters looked at together: what numpy makes of them is some twenty times as large, and should fit a cache."""


@dataclass(frozen=True, kw_only=True)
class Words:
    """All words of a set of texts in one row: `keys_N` a 64-bit key for each word, `text_N` the index of its text."""

    keys_N: Keys
    text_N: npt.NDArray[np.int64]


def words_of(texts: Iterable[str]) -> Words:
    """The words of `texts`, in order."""
    keys, counts = [np.empty(0, dtype=np.uint64)], [np.empty(0, dtype=np.int64)]
    for block in batched(texts, len, _BLOCK_CHARS):
        block_keys, block_counts = _words_in([text.casefold() for text in block])
        keys.append(block_keys)
        counts.append(block_counts)
    counts_T = np.concatenate(counts)
    return Words(keys_N=np.concatenate(keys), text_N=np.repeat(np.arange(len(counts_T), dtype=np.int64), counts_T))


def _words_in(texts: list[str]) -> tuple[Keys, npt.NDArray[np.int64]]:
    """Keys of the words of all texts, which are without case, and how many words each has."""
    # Behind each text a character that is in no word.
    codes_C = np.frombuffer("".join(f"{text}\n" for text in texts).encode("utf-32-le", "surrogatepass"), np.uint32)
    kind_C = _kinds().take(codes_C)
    letter_C, whole_C = _in_a_run(kind_C), kind_C == _WHOLE
    begins_C, ends_C = letter_C.copy(), letter_C.copy()
    begins_C[1:] &= ~letter_C[:-1]
    ends_C[:-1] &= ~letter_C[1:]
    begin_N, end_N = np.flatnonzero(begins_C | whole_C), np.flatnonzero(ends_C | whole_C) + 1
    power_C, inverse_C = _powers(len(codes_C))
    # A polynomial of a word's characters, modulo 2**64, as the difference of two sums from the start of the block:
    # that difference is moved to where the polynomial begins by a division, which an odd base allows.
    sums_C = np.zeros(len(codes_C) + 1, dtype=np.uint64)
    np.cumsum((codes_C + np.uint64(1)) * power_C, out=sums_C[1:])
    keys_N = (sums_C[end_N] - sums_C[begin_N]) * inverse_C[begin_N]
    # A polynomial's low bits depend on its characters' low bits alone; samples go by the low bits of keys.
    keys_N ^= keys_N >> np.uint64(30)
    keys_N *= _MIXER
    keys_N ^= keys_N >> np.uint64(27)
    borders_T = np.cumsum([len(text) + 1 for text in texts])
    return keys_N, np.diff(np.searchsorted(begin_N, borders_T), prepend=0)


def _in_a_run(kind_C: npt.NDArray[np.uint8]) -> npt.NDArray[np.bool_]:
    """Which characters are part of a run that is a word: letters, and marks behind them."""
    letter_C, mark_C = kind_C == _LETTER, kind_C == _MARK
    if not mark_C.any():
        return letter_C
    # A mark goes with what it stands on: on an emoji it is no word, on a character that is one it adds none.
    bearer_C = np.maximum.accumulate(np.where(mark_C, 0, np.arange(len(kind_C))))
    return letter_C[bearer_C]


@functools.cache
def _kinds() -> npt.NDArray[np.uint8]:
    """What each character of Unicode is to words, by its number."""
    characters = "".join(map(chr, range(sys.maxunicode + 1)))
    kinds = np.full(len(characters), _NONE, dtype=np.uint8)
    # Marks by their category: \w has none of them.
    kinds[[number for number, one in enumerate(characters) if unicodedata.category(one)[0] == "M"]] = _MARK
    for pattern, kind in ((r"[\w']", _LETTER), (f"[{_UNSPACED}]", _WHOLE)):
        for run in re.finditer(f"{pattern}+", characters):
            kinds[run.start() : run.end()] = kind
    return kinds


@functools.lru_cache(maxsize=2)  # blocks end with whole texts and differ a little in size: powers for a round size
def _rounded_powers(size: int) -> tuple[Keys, Keys]:
    inverse = np.uint64(pow(int(_ODD_MULTIPLIER), -1, 1 << 64))
    powers, inverses = (np.full(size, base, dtype=np.uint64) for base in (_ODD_MULTIPLIER, inverse))
    powers[0] = inverses[0] = 1
    return np.cumprod(powers), np.cumprod(inverses)


def _powers(size: int) -> tuple[Keys, Keys]:
    """The powers from 0 of the odd base and of its inverse modulo 2**64, as many as `size`."""
    power, inverse = _rounded_powers(1 << max(size - 1, 1).bit_length())
    return power[:size], inverse[:size]


def ngrams_of(words: Words, n: int) -> tuple[Keys, npt.NDArray[np.int64]]:
    """Of each n-gram within one text: a 64-bit key (a polynomial of its words' keys), and the index of its text."""
    total = len(words.keys_N) - n + 1
    if total <= 0:
        return np.empty(0, dtype=np.uint64), np.empty(0, dtype=np.int64)
    keys = np.zeros(total, dtype=np.uint64)
    for offset in range(n):
        keys *= _ODD_MULTIPLIER
        keys += words.keys_N[offset : offset + total]
    within_one_text = words.text_N[:total] == words.text_N[n - 1 :]
    return keys[within_one_text], words.text_N[:total][within_one_text]


def distinct(keys: Keys) -> Keys:
    """The different ones among `keys`, in order."""
    # Not np.unique, whose hash table takes ten times as long as a sort of 64-bit integers.
    ordered = np.sort(keys)
    return ordered[np.append(True, ordered[1:] != ordered[:-1])[: len(ordered)]]


def look_up(keys: Keys, known: Keys) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.bool_]]:
    """Where each key stands among the `known` ones, which are in order, and whether it is there at all."""
    if not len(known):
        return np.zeros(len(keys), dtype=np.intp), np.zeros(len(keys), dtype=bool)
    places = np.minimum(np.searchsorted(known, keys), len(known) - 1)
    return places, known[places] == keys
