"""Questions about a text, declared as data: a few allowed answers, and what each of them is worth.

A judge gives each answer a probability, and the value is the mean of what they are worth; or the worth of the most
probable one (`hard`).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Literal, Self

from pydantic import Field, model_validator

from synpro_engine.config import Config, json_text, read_yaml, validate

_MOST_ANSWERS = 26  # servers label them by letters
_FILE = Path(__file__).with_name("questions.yaml")


class LevelConfig(Config):
    """One allowed answer."""

    name: str = Field(min_length=1, max_length=60)
    """As the judge gives it."""
    means: str = Field(default="", max_length=1000)
    """When it is the right one, in the judge's words."""


class OptionConfig(LevelConfig):
    """One allowed answer of a choice."""

    worth: float = 0.0
    """What the value is when this is the answer."""


class QuestionConfig(Config):
    """A question about a text, as a judge is asked it."""

    type: Literal["truth", "choice", "score"]
    """`truth`: yes or no, worth 1 and 0; `choice`: one of `options`; `score`: one of `levels`, lowest first."""
    ask: str = Field(min_length=1, max_length=4000)
    """What is asked, in a sentence or a few. It stands behind the texts, which are `the source` and `the text`, or
    `the entry`."""
    each: Literal["text", "entry"] = "text"
    """`text` asks about the whole text; `entry` about each of its entries, whose mean counts. A text without
    entries is worth 0 where an operation weighs the question, and has no value where none does."""
    source: Literal["shown", "hidden", "compared"] = "shown"
    """`shown`: the slice that the text was made from stands beside it; `hidden`: the text stands alone; `compared`:
    text and slice are each asked about alone, and the value is the text's less the slice's."""
    options: tuple[OptionConfig, ...] = ()
    """Of a choice: from 2 to 26."""
    levels: tuple[LevelConfig, ...] = ()
    """Of a score, lowest first: from 2 to 26."""
    lowest: float = 0.0
    """What the lowest level is worth; each further one is worth 1 more."""

    @model_validator(mode="after")
    def _has_answers_of_its_type(self) -> Self:
        wanted = {"choice": "options", "score": "levels"}.get(self.type)
        for field in ("options", "levels"):
            given: Sequence[LevelConfig] = getattr(self, field)
            if field != wanted and given:
                raise ValueError(f"{field}: are not of a question of type {self.type}")
            if field == wanted and not 2 <= len(given) <= _MOST_ANSWERS:
                raise ValueError(f"{field}: a {self.type} needs from 2 to {_MOST_ANSWERS} of them, got {len(given)}")
        if self.lowest and self.type != "score":
            raise ValueError(f"lowest: is not of a question of type {self.type}")
        names = [name.casefold().strip() for name in self.names]
        for name in self.names:
            if not name.strip():
                raise ValueError(f"{wanted}: a name is blank")
            if names.count(name.casefold().strip()) > 1:
                raise ValueError(f"{wanted}: two are called `{name}`")
        if len(set(self.worths)) == 1:
            raise ValueError("options: all are worth the same; give the good ones a `worth`")
        if self.each == "entry" and self.source == "compared":
            raise ValueError("source: entries cannot be compared with a slice, which has none")
        return self

    @property
    def names(self) -> tuple[str, ...]:
        """Of the answers, in the order in which they are declared."""
        if self.type == "truth":
            return ("no", "yes")
        return tuple(answer.name for answer in (self.options or self.levels))

    @property
    def worths(self) -> tuple[float, ...]:
        """Of the answers, likewise."""
        if self.type == "choice":
            return tuple(option.worth for option in self.options)
        return tuple(self.lowest + n for n in range(len(self.names)))  # a truth's are 0 and 1

    def told(self, labels: Sequence[str]) -> list[str]:
        """A line for each answer, as judges are shown it: its label, its name, and what it means."""
        answers = zip(labels, self.names, self.options or self.levels, strict=True)
        return [f"{label}: {name}{f' ({one.means})' if one.means else ''}" for label, name, one in answers]

    @property
    def range(self) -> tuple[float, float]:
        """Least and greatest value, of a text and not of a difference."""
        return min(self.worths), max(self.worths)

    def value(self, probabilities: Sequence[float], *, hard: bool = False) -> float:
        """What answers of these probabilities, which sum to 1, are worth; hard: what the most probable one is."""
        if hard:
            return self.worths[max(range(len(probabilities)), key=probabilities.__getitem__)]
        return math.fsum(p * worth for p, worth in zip(probabilities, self.worths, strict=True))

    @property
    def version(self) -> str:
        """16 hex digits of SHA-256 over the question and what its answers are worth."""
        return hashlib.sha256(json_text(self.model_dump(mode="json")).encode()).hexdigest()[:16]


def has_probabilities(values: Sequence[float]) -> bool:
    """Whether these are the probabilities of answers of which one is given: finite, none below 0, their sum 1.

    A hundredth is left to servers that round or compute in half precision.
    """
    return all(math.isfinite(p) and -1e-6 <= p <= 1.0 + 1e-6 for p in values) and abs(math.fsum(values) - 1.0) <= 0.01


@cache
def built_in() -> Mapping[str, QuestionConfig]:
    """The questions that come with the engine, by the reward that they measure."""
    declared = read_yaml(_FILE)
    return MappingProxyType({name: validate(QuestionConfig, one, f"{_FILE}: {name}") for name, one in declared.items()})
