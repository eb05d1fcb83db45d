"""How much of a held-out text also stands in the training text: the share of its 13-grams of words found there.

The training text is read past once and never held. Of the held-out text 64 bits an n-gram are kept, and where those are
more than `limit`, of a sample by hash, so that memory is bounded whatever the size of either; the sample is of n-grams,
not of documents, and its share is that of all of them up to chance.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from synpro_engine.data.encoding import batched, in_order
from synpro_engine.data.ngrams import Keys, distinct, ngrams_of, words_of

NGRAM = 13  # words; what decontamination of pretraining corpora usually looks at
_LIMIT = 1 << 18
"""A share of that many is known to a part in a thousand, and their table stays in a CPU's cache."""
_BATCH_CHARS = 1 << 18
_HOMES = 1 << 16  # looked up together


@dataclass(frozen=True, kw_only=True)
class Overlap:
    """What of one held-out text was found in the training text. Texts shorter than an n-gram have none to find."""

    documents: int
    copied_documents: int
    """With half of their n-grams or more found."""
    ngrams: int
    """Looked for: those of the sample, counted as often as they occur."""
    found: int
    sampled: int
    """One of so many different n-grams was looked for; 1: all."""
    n: int = NGRAM

    @property
    def share(self) -> float | None:
        """Found of those looked for; None where the texts are too short to have any."""
        return self.found / self.ngrams if self.ngrams else None


def measure_overlap(
    held_out: Mapping[str, Callable[[], Iterable[str]]],
    training: Iterable[str],
    *,
    limit: int = _LIMIT,
    threads: int = 1,
) -> dict[str, Overlap]:
    """Look for the n-grams of each held-out text in `training`, which is read once.

    held_out: by name, what yields its documents anew at each call (they are read twice). limit: most n-grams kept of
    each: 8 bytes a piece, three times that while they are gathered. threads: that look, beside the one that reads.
    """
    tables = {name: _HeldOutNgrams(texts(), limit) for name, texts in held_out.items()}

    def look(batch: list[str]) -> None:
        keys, _ = ngrams_of(words_of(batch), NGRAM)
        for table in tables.values():
            table.mark(keys)

    for _ in in_order(_batched(training), look, threads):
        pass
    return {name: tables[name].result(texts()) for name, texts in held_out.items()}


class _HeldOutNgrams:
    """The different n-grams of a held-out text, in order of their keys, and which of them were found."""

    def __init__(self, texts: Iterable[str], limit: int) -> None:
        self._bits, self._keys = 0, np.empty(0, dtype=np.uint64)
        fresh: list[Keys] = []
        for keys, _, _ in _batches(texts):
            fresh.append(self._sampled(keys))
            # Merged when they are as many as those before: each key is sorted a few times only.
            if sum(map(len, fresh)) > min(len(self._keys) + _BATCH_CHARS, limit):
                self._merge(fresh, limit)
        self._merge(fresh, limit)
        self._found = np.zeros(len(self._keys), dtype=bool)
        # Where the keys of each home stand, by leading bits; there are as many homes as keys at least, so that most
        # keys of the training text are told from those looked for at their home, without a search.
        bits = max(1, len(self._keys).bit_length())
        self._shift = np.uint64(64 - bits)
        self._first = np.empty(1 << bits, dtype=np.int32)
        for start in range(0, len(self._first), _HOMES):
            homes = np.arange(start, min(start + _HOMES, len(self._first)), dtype=np.uint64) << self._shift
            self._first[start : start + len(homes)] = np.searchsorted(self._keys, homes)

    def _merge(self, fresh: list[Keys], limit: int) -> None:
        self._keys = distinct(np.concatenate([self._keys, *fresh]))
        fresh.clear()
        while len(self._keys) > limit:
            self._bits += 1
            self._keys = self._sampled(self._keys)

    def mark(self, keys: Keys) -> None:
        """Note which of the n-grams are among `keys`."""
        place, there = self._look_up(self._sampled(keys))
        self._found[place[there]] = True

    def result(self, texts: Iterable[str]) -> Overlap:
        """Count over the same texts what was found."""
        documents = copied = ngrams = found = 0
        for keys, text_of, count in _batches(texts):
            sample = self._in_sample(keys)
            place, there = self._look_up(keys[sample])
            assert there.all(), "the held-out texts changed between two readings"
            hits = self._found[place]
            looked_for = np.bincount(text_of[sample], minlength=count)
            hits_in = np.bincount(text_of[sample], weights=hits, minlength=count)
            documents, ngrams, found = documents + count, ngrams + len(hits), found + int(hits.sum())
            copied += int(((looked_for > 0) & (2 * hits_in >= looked_for)).sum())
        return Overlap(
            documents=documents, copied_documents=copied, ngrams=ngrams, found=found, sampled=1 << self._bits
        )

    def _in_sample(self, keys: Keys) -> npt.NDArray[np.bool_]:
        return keys & np.uint64((1 << self._bits) - 1) == 0

    def _sampled(self, keys: Keys) -> Keys:
        return keys[self._in_sample(keys)]

    def _look_up(self, keys: Keys) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.bool_]]:
        """Where each key stands, and whether it is there at all."""
        place = self._first[keys >> self._shift].astype(np.intp)
        there = np.zeros(len(keys), dtype=bool)
        todo = np.flatnonzero(place < len(self._keys))
        while len(todo):
            found = self._keys[place[todo]]
            there[todo] = found == keys[todo]
            # Keys stand in order: behind a larger one there is nothing to find.
            todo = todo[found < keys[todo]]
            place[todo] += 1
            todo = todo[place[todo] < len(self._keys)]
        return place, there


def _batches(texts: Iterable[str]) -> Iterator[tuple[Keys, npt.NDArray[np.int64], int]]:
    """Keys of the n-grams of some texts at a time, the index of each one's text, and how many texts they are."""
    for batch in _batched(texts):
        yield *ngrams_of(words_of(batch), NGRAM), len(batch)


def _batched(texts: Iterable[str]) -> Iterator[list[str]]:
    return batched(texts, len, _BATCH_CHARS)
