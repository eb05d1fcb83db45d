"""How far a set of texts lies from another in distribution, both ways, by a small language model of words.

The divergence of A from B is KL(A || B) = H(A, B) - H(A): what a model of B loses on A, less what a model of A loses on
it. Both models are bigrams with Witten and Bell's smoothing (IEEE Trans. Inf. Theory 37(4), 1991; Chen and Goodman
1999 compare it), trained on as many words of one half of each set, and asked about the other half of A, which neither
has seen: of like sets the two terms are alike whatever their size, and the difference is 0 but for noise. It is the
cross-entropy difference of Moore and Lewis (ACL 2010), taken as an estimate of the divergence; of unlike sets it lies
somewhat above that, the more the fewer words there are, so compare sets of about one size.

Neither direction stands for the other (Pillutla et al., arXiv 2102.01454): KL(synthetic || organic) is large where
texts say what organic text would not; KL(organic || synthetic) where they no longer say what organic text does, which
is how a collapse begins (Shumailov et al., arXiv 2305.17493).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
import numpy.typing as npt

from synpro_engine.data.ngrams import words_of

LEAST_WORDS = 200
"""Of each half: below, the estimate is noise and is not made."""

Ids = npt.NDArray[np.int64]
_NONE = -1
"""In place of the word before the first one of a text."""


@dataclass(frozen=True, kw_only=True)
class Divergences:
    """KL in nats per word, estimated from `words` words of each set. Noise may bring it below 0."""

    to_other: float
    """KL(set || other)."""
    from_other: float
    """KL(other || set)."""
    words: int


@dataclass(frozen=True)
class _Words:
    """Numbers of words, [N], and of those before them in the same text."""

    word_N: Ids
    before_N: Ids

    def head(self, words: int) -> _Words:
        return _Words(self.word_N[:words], self.before_N[:words])

    def __len__(self) -> int:
        return len(self.word_N)


class _Bigrams:
    """A model of words behind words: what was not seen behind one goes by words alone, and at last by all alike."""

    def __init__(self, trained: _Words, vocabulary: int) -> None:
        self._vocabulary = vocabulary
        self._count_V = np.bincount(trained.word_N, minlength=vocabulary).astype(np.float64)
        self._pair_keys, self._pair_counts = np.unique(self._pairs(trained), return_counts=True)
        heads = self._pair_keys // vocabulary
        # How often each word had one behind it, and how many different ones these were; of the first of texts none.
        known = heads > _NONE
        self._followed_V = np.bincount(heads[known], self._pair_counts[known], minlength=vocabulary)
        self._kinds_V = np.bincount(heads[known], minlength=vocabulary).astype(np.float64)

    def _pairs(self, words: _Words) -> Ids:
        return words.before_N * self._vocabulary + words.word_N

    def cross_entropy(self, words: _Words) -> float:
        """Mean of -ln p(word | word before), nats per word."""
        total, kinds = self._count_V.sum(), float(np.count_nonzero(self._count_V))
        alone_N = (self._count_V[words.word_N] + kinds / self._vocabulary) / (total + kinds)
        keys = self._pairs(words)
        at = np.minimum(np.searchsorted(self._pair_keys, keys), len(self._pair_keys) - 1)
        seen_N = np.where(self._pair_keys[at] == keys, self._pair_counts[at], 0.0)
        has = words.before_N > _NONE
        before_N = np.where(has, words.before_N, 0)
        followed_N, kinds_N = self._followed_V[before_N] * has, self._kinds_V[before_N] * has
        whole_N = followed_N + kinds_N
        behind_N = (seen_N + kinds_N * alone_N) / np.where(whole_N > 0, whole_N, 1.0)
        return float(-np.log(np.where(whole_N > 0, behind_N, alone_N)).mean())


def divergences(texts: Sequence[Sequence[str]], others: Sequence[Sequence[str]]) -> Divergences | None:
    """Estimate the divergences of two sets; None where either has too few words.

    Each set comes as groups of texts, of one source each: groups stay in one half, or a model would be asked about what
    it has seen in other words. Every second group is asked about.
    """
    halves = [[groups[half::2] for half in (0, 1)] for groups in (texts, others)]
    numbered, vocabulary = _numbered([list(chain.from_iterable(half)) for set_ in halves for half in set_])
    (train, asked), (other_train, other_asked) = numbered[:2], numbered[2:]
    words = min(map(len, numbered))
    if words < LEAST_WORDS:
        return None
    mine, theirs = (_Bigrams(half.head(min(len(train), len(other_train))), vocabulary) for half in (train, other_train))
    return Divergences(
        to_other=theirs.cross_entropy(asked) - mine.cross_entropy(asked),
        from_other=mine.cross_entropy(other_asked) - theirs.cross_entropy(other_asked),
        words=words,
    )


def _numbered(sets: Sequence[Sequence[str]]) -> tuple[list[_Words], int]:
    """The words of sets by numbers that they have in common, and how many different ones there are."""
    found = [words_of(texts) for texts in sets]
    keys, number_N = np.unique(np.concatenate([words.keys_N for words in found]), return_inverse=True)
    parts, numbered = np.split(number_N.astype(np.int64), np.cumsum([len(w.keys_N) for w in found])[:-1]), []
    for words, part in zip(found, parts, strict=True):
        before = np.concatenate([[_NONE], part[:-1]])[: len(part)]
        first = np.append(True, words.text_N[1:] != words.text_N[:-1])[: len(part)]
        numbered.append(_Words(part, np.where(first, _NONE, before)))
    return numbered, max(len(keys), 1)
