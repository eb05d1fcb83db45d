"""Filters on accepted texts, before they become tokens: what each removes is counted, and some of it is shown.

A text is removed by the first filter that finds fault with it, in the order of `FilterConfig`, so that counts add up.
What a filter says of a text depends on texts, rewards and their order alone.
"""

from __future__ import annotations

import importlib.util
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, field_validator, model_validator

from synpro_engine.config import Config, Record, UserError
from synpro_engine.data.ngrams import Keys, Words, distinct, look_up, ngrams_of, words_of
from synpro_engine.synth.likeness import Pool, language_of

_REPEATED, _COPIED, _LEAKED = 3, 8, 13  # words
_SAMPLES, _SAMPLE_CHARS = 3, 600


class BestConfig(Config):
    """Best of n: of the completions of a slice by one operation (`generate.samples`), those that are trained on."""

    by: str | None = "influence"
    """The reward that is compared, or `total`; a text without it comes last, and of equal ones the first is better.
    None takes them as they were drawn: a pool as large, of texts that nothing chose."""
    keep: int = Field(default=1, gt=0)
    """Of each slice."""


class FilterConfig(Config):
    """Which accepted texts are not trained on. What is not given filters nothing."""

    LATER: ClassVar[frozenset[str]] = frozenset({"best"})

    min_chars: int | None = Field(default=None, ge=1)
    """Fewest characters of a text."""
    max_chars: int | None = Field(default=None, ge=1)
    """Most characters of a text."""
    max_repetition: float | None = Field(default=None, ge=0, lt=1)
    """Largest share of a text's 3-grams of words that stood in it before. Where each character counts as a word, as in
    Chinese, good texts repeat more."""
    max_copied: float | None = Field(default=None, ge=0, lt=1)
    """Largest share of a text's 8-grams of words that stand in the slice that it was made from."""
    same_language: bool = False
    """Remove texts in another language than their slice's; where either is shorter than 100 characters nothing can be
    told, and the text stays. Needs `pip install 'synpro_engine[filters]'`."""
    near_duplicate: float | None = Field(default=None, gt=0, le=1)
    """Similarity (Jaccard, of sets of 5-grams of words, estimated by MinHash) from which on a text counts as one of the
    texts kept before it, in its round or an earlier one, or as one of the slices that the round's texts were made from.
    Memory: about 2.5 kB a text, of earlier rounds too, and a slice. Needs `pip install 'synpro_engine[filters]'`."""
    max_leaked: float | None = Field(default=None, ge=0, lt=1)
    """Largest share of a text's 13-grams of words that stand in the validation split or in held-out tasks; 0 allows
    none. Memory: 8 bytes for each of their 13-grams, some five times that while they are gathered."""
    quality_quantile: float | None = Field(default=None, gt=0, lt=1)
    """Remove texts whose reward `quality` is below this quantile of all accepted ones of the operation and round; a
    text without that reward stays. Likewise `influence_quantile`. Memory: 8 bytes a text."""
    influence_quantile: float | None = Field(default=None, gt=0, lt=1)
    """Remove texts whose reward `influence` is below this quantile."""
    best: BestConfig | None = None
    """Keep the best of each slice's accepted texts alone. Memory: 8 bytes a text."""
    least: dict[str, float] = Field(default={})
    """Remove texts whose value is below this one, by reward or question of your own (`reward.judges`); a text without
    that value stays."""

    @field_validator("least", mode="before")
    @classmethod
    def _null_leaves_out(cls, value: Any) -> Any:
        # So a recipe is rid of what its `base` says, as of its references.
        return {name: one for name, one in value.items() if one is not None} if isinstance(value, Mapping) else value

    @model_validator(mode="after")
    def _some_length_is_left(self) -> FilterConfig:
        if self.min_chars is not None and self.max_chars is not None and self.min_chars > self.max_chars:
            raise ValueError(f"min_chars: {self.min_chars} is more than max_chars ({self.max_chars})")
        return self

    def recorded(self) -> dict[str, Any]:
        """The settings; `least` where it is used, so that what was filtered before it was there stays as it is."""
        return {name: value for name, value in super().recorded().items() if name != "least" or value}

    @property
    def any(self) -> bool:
        """Whether anything is filtered."""
        return self != FilterConfig()

    @property
    def reads_sources(self) -> bool:
        """Whether texts are compared with the slices that they were made from."""
        return self.max_copied is not None or self.same_language or self.near_duplicate is not None

    @property
    def quantiles(self) -> dict[str, float]:
        """Of rewards, by their names."""
        named = {"quality": self.quality_quantile, "influence": self.influence_quantile}
        return {name: quantile for name, quantile in named.items() if quantile is not None}

    def check_libraries(self) -> None:
        """UserError for a filter whose library is not installed."""
        needed = {"same_language": ("py3langid", self.same_language), "near_duplicate": ("rensa", self.near_duplicate)}
        for key, (library, wanted) in needed.items():
            if wanted and importlib.util.find_spec(library) is None:
                raise UserError(f"`filter.{key}`: {library} is not installed; pip install 'synpro_engine[filters]'")


class RemovedText(Record):
    """A text that a filter removed."""

    id: str
    why: str
    """What the filter found."""
    text: str
    """Its first 600 characters."""


class OperationFiltering(Record):
    """What became of one operation's accepted texts."""

    kept: int
    removed: dict[str, int]
    """Number of texts by the filter that removed them."""
    samples: dict[str, tuple[RemovedText, ...]]
    """The first three that each filter removed."""


class FilterReport(Record):
    """What the filters kept and removed in a round."""

    by_operation: dict[str, OperationFiltering]


@dataclass(frozen=True, kw_only=True)
class Made:
    """An accepted text and the text of the slice that it was made from (empty where no filter asks for it)."""

    id: str
    text: str
    source: str
    rewards: Mapping[str, float]
    number: int = 0
    """Among the accepted texts of its operation and round, from 0."""
    document: str = ""
    """Id of the document that it was made from."""
    member: int = 0
    """Number of the sample."""

    @cached_property
    def words(self) -> Words:
        """Of the text."""
        return words_of([self.text])


class Filters:
    """The filters of one round: `survey` the texts of all operations first, then let each operation's `pass_through`.

    held_out: texts of which no text may hold too much, read once where that is asked for. on_removed: told of each text
    that is removed, the filter and what it found.
    """

    def __init__(
        self,
        config: FilterConfig,
        held_out: Iterable[str] = (),
        on_removed: Callable[[Made, str, str], object] = lambda made, filter, why: None,
    ) -> None:
        self.config, self._on_removed = config, on_removed
        self._pool = None if config.near_duplicate is None else Pool(config.near_duplicate)
        self._held_out = np.empty(0, np.uint64)
        if config.max_leaked is not None:
            self._held_out = distinct(ngrams_of(words_of(held_out), _LEAKED)[0])
        self._floors: dict[str, dict[str, float]] = {}
        self._beaten: dict[str, NDArray[np.int64]] = {}
        self._by_operation: dict[str, OperationFiltering] = {}

    @property
    def surveys(self) -> bool:
        """Whether `survey` has anything to look for."""
        return self._pool is not None or bool(self.config.quantiles) or self.config.best is not None

    @property
    def report(self) -> FilterReport:
        """Of the operations that have passed."""
        return FilterReport(by_operation=self._by_operation)

    def remember(self, texts: Iterable[str]) -> None:
        """Take texts of earlier rounds for known, which new ones must not be like."""
        if self._pool is not None:
            for text in texts:
                self._pool.add(text)

    def survey(self, operation: str, texts: Iterable[Made]) -> None:
        """Note what can only be known of all texts: where the lowest rewards end, and which slices were worked on."""
        values = {name: array("d") for name in self.config.quantiles}
        ranked = None if self.config.best is None else _Ranked(self.config.best)
        for made in texts:
            if ranked is not None:
                ranked.add(made)
            for name, of_all in values.items():
                if name in made.rewards:
                    of_all.append(made.rewards[name])
            if self._pool is not None:
                self._pool.add(made.source)
        # Of the values there are, so that the border is one text's own reward and equal ones share its fate.
        self._floors[operation] = {
            name: float(np.sort(of_all)[int(self.config.quantiles[name] * len(of_all))])
            for name, of_all in values.items()
            if of_all
        }
        if ranked is not None:
            self._beaten[operation] = ranked.beaten()

    def pass_through(self, operation: str, texts: Iterable[Made]) -> Iterator[Made]:
        """Yield the texts that stay, and count the others."""
        kept, removed, samples = 0, Counter[str](), dict[str, list[RemovedText]]()
        for made in texts:
            fault = self._fault(operation, made)
            if fault is None:
                kept += 1
                if self._pool is not None:
                    self._pool.add(made.text)
                yield made
                continue
            name, why = fault
            removed[name] += 1
            self._on_removed(made, name, why)
            if removed[name] <= _SAMPLES:
                shown = RemovedText(id=made.id, why=why, text=made.text[:_SAMPLE_CHARS])
                samples.setdefault(name, []).append(shown)
        self._by_operation[operation] = OperationFiltering(
            kept=kept, removed=dict(removed), samples={name: tuple(some) for name, some in samples.items()}
        )

    def _fault(self, operation: str, made: Made) -> tuple[str, str] | None:
        """The first filter that removes a text, and why."""
        checks: dict[str, Callable[[], str | None]] = {
            "length": lambda: self._length(made),
            "repetition": lambda: self._repetition(made),
            "copy": lambda: self._copy(made),
            "language": lambda: self._language(made),
            "near duplicate": lambda: self._near_duplicate(made),
            "leak": lambda: self._leak(made),
            "best": lambda: self._best(operation, made),
            "quality": lambda: self._reward("quality", operation, made),
            "influence": lambda: self._reward("influence", operation, made),
        } | {f"least {name}": partial(_too_low, made, name, least) for name, least in self.config.least.items()}
        return next(((name, why) for name, check in checks.items() if (why := check()) is not None), None)

    def _length(self, made: Made) -> str | None:
        low, high, chars = self.config.min_chars, self.config.max_chars, len(made.text)
        bad = (low is not None and chars < low) or (high is not None and chars > high)
        return f"{chars} characters" if bad else None

    def _repetition(self, made: Made) -> str | None:
        if self.config.max_repetition is None:
            return None
        keys, _ = ngrams_of(made.words, _REPEATED)
        share = 1 - len(distinct(keys)) / len(keys) if len(keys) else 0.0
        return f"{share:.3f} of its {_REPEATED}-grams repeat" if share > self.config.max_repetition else None

    def _copy(self, made: Made) -> str | None:
        if self.config.max_copied is None:
            return None
        source, _ = ngrams_of(words_of([made.source]), _COPIED)
        return _too_many(made, _COPIED, distinct(source), self.config.max_copied, "in its source")

    def _language(self, made: Made) -> str | None:
        if not self.config.same_language:
            return None
        wanted, found = language_of(made.source), language_of(made.text)
        return f"{found}, of {wanted}" if wanted and found and wanted != found else None

    def _near_duplicate(self, made: Made) -> str | None:
        return "like another text" if self._pool is not None and self._pool.has(made.text) else None

    def _leak(self, made: Made) -> str | None:
        if self.config.max_leaked is None:
            return None
        return _too_many(made, _LEAKED, self._held_out, self.config.max_leaked, "in held-out text")

    def _best(self, operation: str, made: Made) -> str | None:
        beaten = self._beaten.get(operation, np.empty(0, np.int64))
        at = int(np.searchsorted(beaten, made.number))
        return "others of its slice are better" if at < len(beaten) and beaten[at] == made.number else None

    def _reward(self, name: str, operation: str, made: Made) -> str | None:
        floor = self._floors.get(operation, {}).get(name)
        if floor is None or name not in made.rewards or made.rewards[name] >= floor:
            return None
        return f"{made.rewards[name]:.4g}, below {floor:.4g}"


class _Ranked:
    """Numbers of texts that are not among the best of their slices. Texts of a slice pass by one behind the other."""

    def __init__(self, config: BestConfig) -> None:
        self._config, self._slice, self._beaten = config, "", array("q")
        self._texts: list[tuple[float, int]] = []

    def add(self, made: Made) -> None:
        slice_key = made.id.rpartition(":")[0]  # an id ends with the number of the sample
        if slice_key != self._slice:
            self._end_slice()
            self._slice = slice_key
        value = 0.0 if self._config.by is None else made.rewards.get(self._config.by, float("-inf"))
        self._texts.append((-value, made.number))

    def beaten(self) -> NDArray[np.int64]:
        self._end_slice()
        return np.sort(np.array(self._beaten, dtype=np.int64))

    def _end_slice(self) -> None:
        self._beaten.extend(number for _, number in sorted(self._texts)[self._config.keep :])
        self._texts = []


def _too_low(made: Made, name: str, least: float) -> str | None:
    value = made.rewards.get(name)
    return None if value is None or value >= least else f"{value:.4g}, below {least:.4g}"


def _too_many(made: Made, n: int, known: Keys, limit: float, where: str) -> str | None:
    """What is wrong with a text that has a larger share of its n-grams than `limit` among `known`, which are sorted."""
    keys, _ = ngrams_of(made.words, n)
    if not len(keys):
        return None
    _, there = look_up(keys, known)
    share = float(there.mean())
    return f"{share:.3f} of its {n}-grams stand {where}" if share > limit else None
