"""Words of texts, and their n-grams as 64-bit keys that are the same in every process.

A word is a run of letters, digits and apostrophes, without case; in scripts that put no spaces between words (Chinese,
Japanese, Thai, Lao, Khmer, Burmese) each character is one.
"""

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Keys = npt.NDArray[np.uint64]

_UNSPACED = (
    r"\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
)
_WORD = re.compile(rf"[{_UNSPACED}]|(?:[^\W{_UNSPACED}]|')+")
_ODD_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True, kw_only=True)
class Words:
    """All words of a set of texts in one row: `keys_N` a 64-bit key for each word, `text_N` the index of its text."""

    keys_N: Keys
    text_N: npt.NDArray[np.int64]


def words_of(texts: Iterable[str]) -> Words:
    """The words of `texts`, in order."""
    keys: list[int] = []
    lengths: list[int] = []
    key_of: dict[str, int] = {}
    for text in texts:
        words = _WORD.findall(text.casefold())
        for word in words:
            if word not in key_of:
                # Not hash(): that one changes from process to process, and ranks must agree.
                digest = hashlib.blake2b(word.encode("utf-8", "surrogatepass"), digest_size=8).digest()
                key_of[word] = int.from_bytes(digest, "little")
        keys.extend(key_of[word] for word in words)
        lengths.append(len(words))
    text_N = np.repeat(np.arange(len(lengths), dtype=np.int64), np.asarray(lengths, dtype=np.int64))
    return Words(keys_N=np.asarray(keys, dtype=np.uint64), text_N=text_N)


def ngrams_of(words: Words, n: int) -> tuple[Keys, npt.NDArray[np.int64]]:
    """Of each n-gram within one text: a 64-bit key (a polynomial of its words' keys), and the index of its text."""
    total = len(words.keys_N) - n + 1
    if total <= 0:
        return np.empty(0, dtype=np.uint64), np.empty(0, dtype=np.int64)
    keys = np.zeros(total, dtype=np.uint64)
    for offset in range(n):
        keys = keys * _ODD_MULTIPLIER + words.keys_N[offset : offset + total]
    within_one_text = words.text_N[:total] == words.text_N[n - 1 :]
    return keys[within_one_text], words.text_N[:total][within_one_text]
