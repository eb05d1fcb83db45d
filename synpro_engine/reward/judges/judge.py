"""A reward that is a declared question to another model, behind an endpoint or in the job."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Protocol

from synpro_engine.reward.judges.client import Judgement
from synpro_engine.reward.judges.questions import QuestionConfig
from synpro_engine.reward.types import Candidate

Share = Callable[[Callable[[], list[float]]], Sequence[float | None]]
"""Runs a piece of work once for all ranks that would do the very same, and gives its result to each; None for NaN."""


class Asked(Protocol):
    """One model that questions are put to, for one reward or several."""

    @property
    def name(self) -> str:
        """Those of its judges."""
        ...

    def question(self, judge: str) -> QuestionConfig:
        """What a judge is asked."""
        ...

    def version(self, judge: str) -> str:
        """What the values of a judge hang on."""
        ...

    def belongs_to(self, judge: str) -> dict[str, str]:
        """What a calibration of a judge belongs to, by the fields of `Calibration`."""
        ...

    def values(self, judgements: Sequence[Judgement]) -> list[float]:
        """The value of each, NaN where there is no answer."""
        ...

    def take_counts(self) -> dict[str, int]:
        """What it was asked since the last call."""
        ...


class Judge:
    """What a question's answers are worth: of a text, of its entries in the mean, or less what its source's are.

    NaN where an answer that it takes is missing.
    """

    def __init__(self, name: str, client: Asked, share: Share = lambda work: work()) -> None:
        """name: one of the client's judges. share: for ranks that would all ask the same."""
        self.name, self.client, self.share = name, client, share
        self._question = client.question(name)

    @property
    def each(self) -> str:
        """What the question is asked of, the whole `text` or each `entry`."""
        return self._question.each

    @property
    def range(self) -> tuple[float, float]:
        """Least and greatest value; 0 is among them for a text without entries, where these are judged."""
        low, high = self._question.range
        if self._question.source == "compared":
            return low - high, high - low
        return (min(low, 0.0), max(high, 0.0)) if self._question.each == "entry" else (low, high)

    @property
    def version(self) -> str:
        """What its values hang on: model, how it is asked, version of the question, and of the calibration."""
        return self.client.version(self.name)

    def __call__(self, candidates: Sequence[Candidate]) -> list[float]:
        """Values [C]."""
        [values] = ask_together([(self, candidates)])
        return values

    def judgements(self, candidate: Candidate) -> list[Judgement]:
        """What has to be judged for a candidate's value."""
        text, question = candidate.parsed.text, self._question
        source = candidate.source if question.source == "shown" else ""
        if question.each == "entry":
            return [Judgement(self.name, source, text, str(entry)) for entry in candidate.parsed.entries]
        if question.source == "compared":
            return [Judgement(self.name, "", text), Judgement(self.name, "", candidate.source)]
        return [Judgement(self.name, source, text)]

    def value(self, values: Sequence[float]) -> float:
        """What the values of `judgements` come to."""
        if self._question.source == "compared":
            text, source = values
            return text - source
        return math.fsum(values) / max(1, len(values))


def ask_together(wanted: Sequence[tuple[Judge, Sequence[Candidate]]]) -> list[list[float]]:
    """The values of each judge's candidates; what several ask of one model about a text goes to it together."""
    by_client: dict[Asked, list[int]] = {}
    for place, (judge, _) in enumerate(wanted):
        by_client.setdefault(judge.client, []).append(place)
    values: list[list[float]] = [[] for _ in wanted]
    for client, places in by_client.items():
        of_each = [(place, [wanted[place][0].judgements(c) for c in wanted[place][1]]) for place in places]
        asked = [one for _, of_candidates in of_each for judgements in of_candidates for one in judgements]
        share = wanted[places[0]][0].share
        answers = share(lambda client=client, asked=asked: client.values(asked)) if asked else []
        # Where they came from another rank, as JSON, NaN is null.
        answered = iter([math.nan if value is None else value for value in answers])
        for place, of_candidates in of_each:
            values[place] = [wanted[place][0].value([next(answered) for _ in each]) for each in of_candidates]
    return values
