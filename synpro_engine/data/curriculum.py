"""How often and in which order the documents of a source are read, pass by pass, by a score of each of them.

A pass is a pure function of (seed, name, number): neither ranks nor batches enter, and none is made to reach another.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from synpro_engine.config import Config, json_text
from synpro_engine.data.hashing import stable_hash, stable_permutation

_TRIES = 4


class CurriculumConfig(Config):
    """How often and in which order documents are read, by a score of each; documents without one are as the median."""

    by: str = Field(default="influence", min_length=1)
    """The score: `influence`, another reward, or a field of the file that scores are read from."""
    buckets: int | None = Field(default=None, ge=2, le=1000)
    """Buckets by score, of as many documents each, the lowest first; as many as `repeats` has numbers, if not given."""
    repeats: float | tuple[float, ...] = 1.0
    """How often a document is read in a pass: one number for all, or one for each bucket, the lowest score's first. Of
    0.25 it is every fourth pass, for each document another; 0 leaves it out."""
    max_epochs: int | None = Field(default=None, ge=1)
    """Most times that a document is read in the run; a stage that would need more text is refused. Where a run takes
    the curriculum up later, each pass that was begun before counts as one reading of every document."""
    order: Literal["shuffled", "sorted", "bucketed", "late_high"] = "shuffled"
    """Of documents in a pass. `sorted`: by score, windows as they follow each other. `bucketed`: bucket by bucket,
    shuffled in each. `late_high`: shuffled, the `late_share` of highest score behind all others."""
    descending: bool = False
    """Turn the order round: the highest score first, and `late_high` holds the lowest back."""
    late_share: float = Field(default=0.2, gt=0, lt=1)
    """Of the documents, for `late_high`."""
    late_from: int | None = Field(default=None, ge=1)
    """For `late_high`: the pass, from 0, from which on the others are read no longer. None: each pass has all."""

    @model_validator(mode="after")
    def _consistent(self) -> CurriculumConfig:
        each = self.repeats if isinstance(self.repeats, tuple) else (self.repeats,)
        if not each or min(each) < 0 or max(each) > 1000 or not max(each):
            raise ValueError("repeats: numbers from 0 to 1000, of which one at least is above 0")
        if isinstance(self.repeats, tuple) and self.buckets not in (None, len(each)):
            raise ValueError(f"repeats: {len(each)} numbers for {self.buckets} buckets")
        if self.order == "bucketed" and self.number_of_buckets < 2:
            raise ValueError("buckets: is missing, by which `order: bucketed` goes")
        if self.late_from is not None and self.order != "late_high":
            raise ValueError("late_from: goes with `order: late_high` alone")
        return self

    @property
    def number_of_buckets(self) -> int:
        """1 where nothing goes by them."""
        return self.buckets or (len(self.repeats) if isinstance(self.repeats, tuple) else 1)

    @property
    def wants_scores(self) -> bool:
        """Whether anything goes by the score."""
        return self.order != "shuffled" or self.number_of_buckets > 1


@dataclass(frozen=True, eq=False)
class Pass:
    """One pass: documents [N] in their order, and from which of them on each group is shuffled by itself, [G]."""

    documents: NDArray[np.int64]
    groups: NDArray[np.int64] | None
    """Windows follow each other as they are, where None."""


class Curriculum:
    """The passes over one source."""

    def __init__(
        self, config: CurriculumConfig, scores: NDArray[np.floating] | None, documents: int, seed: int, name: str
    ) -> None:
        """scores: of all documents, [D], NaN where one has none; needed where `config` goes by them.

        name: of the source, so that sources of one seed are each in an order of its own.
        """
        assert not config.wants_scores or (scores is not None and len(scores) == documents)
        self.config, self._documents, self._seed, self._name = config, documents, seed, name
        self.passes_before = 0
        """Of all documents, before the first one of these: readings that count too (`max_epochs`)."""
        digest = hashlib.sha256(json_text(config.recorded()).encode())
        rank = np.arange(documents)
        if config.wants_scores and scores is not None:
            digest.update(np.ascontiguousarray(scores, np.float32).tobytes())
            rank = _ranks(scores)
        self.fingerprint = digest.hexdigest()
        """Hex digest of settings and scores: a position under others has no meaning here."""
        self._rank = rank if not config.descending else documents - 1 - rank
        self._bucket = rank * config.number_of_buckets // max(1, documents)
        each = config.repeats if isinstance(config.repeats, tuple) else (config.repeats,) * config.number_of_buckets
        self._repeats = np.array(each, np.float64)[self._bucket]
        self._late = self._rank >= documents - max(1, round(config.late_share * documents))

    def after(self, passes: int) -> Curriculum:
        """The same where every document was read so many times before."""
        other = copy.copy(self)
        other.passes_before = passes
        return other

    def tokens_per_pass(self, lengths: NDArray[np.int64]) -> float:
        """On average, before any document was read as often as it may be; lengths: of the documents, [D]."""
        return float((self._repeats * lengths).sum())

    def least_tokens(self, lengths: NDArray[np.int64]) -> float:
        """The same of the passes that have the fewest documents."""
        read = lengths if self.config.late_from is None else lengths * self._late
        return self.tokens_per_pass(read)

    def copies(self, number: int) -> NDArray[np.int64]:
        """How often pass `number` has each document, [D]."""
        return self._until(number + 1) - self._until(number)

    def is_used_up(self, number: int) -> bool:
        """Whether neither pass `number` nor a later one has any document."""
        left, config = self._repeats > 0, self.config
        if (most := self._most) is not None:
            left &= self._until(number) < most
        if config.late_from is not None and number >= config.late_from:
            left &= self._late
        return not left.any()

    def at(self, number: int) -> Pass:
        """Pass `number`."""
        config, documents = self.config, np.concatenate([np.empty(0, np.int64), *self._layers(number)])
        if config.order == "sorted":
            return Pass(_apart(documents), None)
        if config.order == "shuffled":
            return Pass(_apart(documents), np.zeros(1, np.int64))
        groups = self._late.astype(np.int64) if config.order == "late_high" else self._bucket
        if config.order == "bucketed" and config.descending:
            groups = config.number_of_buckets - 1 - groups
        documents = documents[np.argsort(groups[documents], kind="stable")]
        _, begins = np.unique(groups[documents], return_index=True)
        return Pass(_apart(documents), begins)

    def _layers(self, number: int) -> Iterator[NDArray[np.int64]]:
        """The documents of a pass, once each in the first layer, and those that it has again in the further ones."""
        # Each time in a layer of its own, so that a document's copies lie far from each other.
        copies = self.copies(number)
        for layer in range(int(copies.max(initial=0))):
            key = f"{self._name}\0{number}" + (f"\0{layer}" if layer else "")
            order = stable_permutation(self._documents, self._seed, "documents", key)
            order = order[copies[order] > layer]
            by_score = self.config.order == "sorted"
            yield order[np.argsort(self._rank[order], kind="stable")] if by_score else order

    def _until(self, passes: int) -> NDArray[np.int64]:
        """How often each document is read in all passes before this one."""
        count = np.full(self._documents, float(passes))
        if self.config.late_from is not None:
            count[~self._late] = min(passes, self.config.late_from)
        read = np.floor(self._repeats * count + self._phases).astype(np.int64)
        return read if (most := self._most) is None else np.minimum(read, most)

    @property
    def _most(self) -> int | None:
        """How often a document may yet be read."""
        most = self.config.max_epochs
        return None if most is None else max(0, most - self.passes_before)

    @cached_property
    def _phases(self) -> NDArray[np.float64]:
        """Where in its cycle each document begins, in [0, 1), so that every pass has some of those read seldom, [D]."""
        words = np.random.PCG64(stable_hash(self._seed, "repeats", self._name)).random_raw(self._documents)
        # The generator's words as they are, for NumPy promises no more of it (see `stable_permutation`).
        return (words >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _ranks(scores: NDArray[np.floating]) -> NDArray[np.int64]:
    """The place of each document by its score, the lowest first; equal ones, and those without one, by their number."""
    known = ~np.isnan(scores)
    filled = np.where(known, scores, np.median(scores[known]) if known.any() else 0.0)
    rank = np.empty(len(scores), np.int64)
    rank[np.argsort(filled, kind="stable")] = np.arange(len(scores))
    return rank


def _apart(documents: NDArray[np.int64]) -> NDArray[np.int64]:
    """The same with no document right behind itself, where there are others: two copies would pass for one document."""
    for _ in range(_TRIES):  # an exchange may bring two others together
        for place in np.flatnonzero(documents[1:] == documents[:-1]).tolist():
            # The second copy goes one further on, or at the very end the first one back.
            a, b = (place + 1, place + 2) if place + 2 < len(documents) else (place, max(0, place - 1))
            documents[[a, b]] = documents[[b, a]]
    return documents
