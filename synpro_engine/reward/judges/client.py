"""Questions about many texts to one endpoint: what was answered before is kept, and what is not answered is NaN.

Several judges may share a client: all that they ask about one text goes in one request, where the interface allows it.
"""

from __future__ import annotations

import hashlib
import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from tqdm import tqdm

from synpro_engine.config import json_text
from synpro_engine.remote import COUNTED, CallFault, Calls, Service
from synpro_engine.reward.judges import typed, written
from synpro_engine.reward.judges.cache import AnswerCache
from synpro_engine.reward.judges.calibration import Calibration
from synpro_engine.reward.judges.config import JudgeConfig, question_of
from synpro_engine.reward.judges.questions import QuestionConfig

_TOLD_EVERY_S = 60.0
INPUT_TOKENS = "input_tokens"
"""Counted beside `COUNTED`: tokens of requests, as the server counts them."""
PATHS = typed.PATHS | written.PATHS


class Judgement(NamedTuple):
    """One thing to be judged.

    source: the slice, empty where the judge is not to see it. text: what is judged, or the text that `entry`, which is
    then what is judged, stands in.
    """

    judge: str
    source: str
    text: str
    entry: str = ""

    @property
    def state(self) -> str:
        """What a question is asked about; of an entry, which stands in the question itself, the source alone."""
        return typed.state_of(self.source, "" if self.entry else self.text)


@dataclass(frozen=True)
class Inquiry:
    """What one judge is asked."""

    name: str
    """The reward's."""
    config: JudgeConfig

    @cached_property
    def question(self) -> QuestionConfig:
        """As it is declared."""
        return question_of(self.name, self.config)

    @cached_property
    def written(self) -> written.WrittenForm:
        """As it is put in writing."""
        return written.written_form(self.question)

    @cached_property
    def version(self) -> str:
        """16 hex digits of SHA-256 over all that a judge is shown beside the texts, and what its answers are worth."""
        shown = [self.question.version, self.config.hard, self.config.prompt]
        return hashlib.sha256(json_text(shown).encode()).hexdigest()[:16]


class Client:
    """One endpoint, as one rank asks it. Values are kept in memory and, with a directory, on disk."""

    def __init__(
        self,
        judges: Mapping[str, JudgeConfig],
        api: str,
        *,
        ranks: int = 1,
        cache: Path | None = None,
        calibrations: Mapping[str, Calibration] = MappingProxyType({}),
        asked_to_stop: Callable[[], bool] = lambda: False,
        tell_every_s: float = _TOLD_EVERY_S,
    ) -> None:
        """judges: by the reward's name, all of one `connection`. api: the interface that is taken.

        cache: answers of each judge are kept in a directory of its name there. calibrations: by judge, maps that values
        go through once they are known; what is kept is what was answered. Others as `Service` takes them. UserError for
        an API key that is not there.
        """
        self.name, self.api = "+".join(judges), api
        first, self._config = next(iter(judges.items()))
        self.inquiries = {name: Inquiry(name, config) for name, config in judges.items()}
        self.service = Service(
            f"reward.judges.{first}", self._config, ranks=ranks, asked_to_stop=asked_to_stop, tell_every_s=tell_every_s,
            counted=(*COUNTED, INPUT_TOKENS),
        )  # fmt: skip
        self.service.is_well = self.answers
        self._calibrations = calibrations
        self._caches = {
            name: AnswerCache(cache / name if cache is not None and config.cache else None, about=self.version(name))
            for name, config in judges.items()
        }
        self._told_missing_at = -math.inf

    def question(self, judge: str) -> QuestionConfig:
        """What a judge is asked."""
        return self.inquiries[judge].question

    def take_counts(self) -> dict[str, int]:
        """What was asked since the last call, counted."""
        return self.service.take_counts()

    def version(self, judge: str) -> str:
        """What the values of a judge hang on: model, interface, version of the question, and of the calibration."""
        asked = f"{self._config.model} by {self.api}, question {self.inquiries[judge].version}"
        calibration = self._calibrations.get(judge)
        return asked if calibration is None else f"{asked}, calibration {calibration.version}"

    def belongs_to(self, judge: str) -> dict[str, str]:
        """What a calibration of a judge belongs to, by the fields of `Calibration`."""
        inquiry = self.inquiries[judge]
        return {"judge": judge, "model": inquiry.config.model, "api": self.api, "question": inquiry.version}

    def values(self, judgements: Sequence[Judgement]) -> list[float]:
        """The value of each, NaN where it was given up.

        Raises Stopped when the job is asked to stop in an outage that is waited for.
        """
        for cache in self._caches.values():
            cache.refresh()
        values: dict[Judgement, float] = {}
        for answered in self.service.each(self.requests(judgements), self._answered).values():
            values |= answered or {}
        if missing := sum(one not in values for one in dict.fromkeys(judgements)):
            self.service.count("missing", missing)
            self._tell_missing(missing, len(set(judgements)))
        return [self._calibrated(one, values.get(one, math.nan)) for one in judgements]

    def _calibrated(self, one: Judgement, value: float) -> float:
        calibration = self._calibrations.get(one.judge)
        return value if calibration is None else calibration(value, self.inquiries[one.judge].question.range)

    def requests(self, judgements: Sequence[Judgement]) -> list[tuple[Judgement, ...]]:
        """What is asked together: all that is asked about one text in one state, as far as the interface allows."""
        most = self._most
        groups: dict[tuple[str, str, bool], list[Judgement]] = {}
        for one in dict.fromkeys(judgements):
            groups.setdefault((one.source, one.text, bool(one.entry)), []).append(one)
        return [tuple(group[at : at + most]) for group in groups.values() for at in range(0, len(group), most)]

    def samples(self) -> list[tuple[Judgement, ...]]:
        """Small requests that ask every judge once, to see whether they are understood."""
        source, text, entry = (
            "At six the sun rose.",
            "The sun rose at six.",
            "- Topic: Sunrise. Content: It was at six.",
        )
        questions = {name: inquiry.question for name, inquiry in self.inquiries.items()}
        return self.requests([
            Judgement(name, source if one.source == "shown" else "", text, entry if one.each == "entry" else "")
            for name, one in questions.items()
        ])  # fmt: skip

    def answers(self, seconds: float) -> bool:
        """Whether the server answers the first of `samples`, now and within so many seconds."""
        try:
            self.service.endpoint.post(PATHS[self.api], json_text(self.body(self.samples()[0])).encode(), seconds)
        except CallFault:
            return False
        return True

    @property
    def _most(self) -> int:
        allowed = typed.MOST_QUESTIONS.get(self.api, 1)
        return min(allowed, self._config.max_questions or allowed)

    def _answered(
        self, calls: Calls[tuple[Judgement, ...], dict[Judgement, float]], wanted: tuple[Judgement, ...]
    ) -> dict[Judgement, float]:
        """The values of one request: those that are known already, and what is answered now."""
        # Here, since hashing a batch would hold up its first call.
        keys = {one: self._key(one) for one in wanted}
        known = {one: value for one, key in keys.items() if (value := self._caches[one.judge].get(key)) is not None}
        self.service.count("kept", len(known))
        left = [one for one in wanted if one not in known]
        found = self._ask(calls, left) if left else {}
        for one, value in found.items():
            self._caches[one.judge].put(keys[one], value)
        return known | found

    def _key(self, one: Judgement) -> bytes:
        """Of all that an answer hangs on. Not of the address: the same model may be served elsewhere tomorrow.

        Nor of what else is asked in the same request, which each question is answered without.
        """
        request = self.inquiries[one.judge].version + json_text(self.body([one]))
        return hashlib.sha256(f"{self.api} {request}".encode()).digest()[:16]

    def body(self, wanted: Sequence[Judgement], *, again: bool = False) -> dict[str, Any]:
        """The request that asks for `wanted`, which is one judgement of a written answer; again: it was unreadable."""
        if self.api in typed.PATHS:
            fields = typed.questions_of(self.api, wanted[0].state, self._asked(wanted))
        else:
            [one] = wanted
            fields = written.written_request(self._config, self.api, self._words(one) + written.REMINDER * again)
        body = {"model": self._config.model} | fields | self._config.request
        return {name: value for name, value in body.items() if value is not None}

    def _asked(self, wanted: Sequence[Judgement]) -> list[typed.Asked]:
        return [typed.Asked(self.inquiries[one.judge].question, one.entry) for one in wanted]

    def _words(self, one: Judgement) -> str:
        inquiry = self.inquiries[one.judge]
        if inquiry.config.prompt is not None:
            return written.fill(inquiry.config.prompt, one.entry or one.text, one.source)
        shown = f"{one.state}\n\n{typed.entry_of(one.entry)}" if one.entry else one.state
        return f"{shown}\n\n{inquiry.written.words}"

    def read(self, reply: Mapping[str, Any], wanted: Sequence[Judgement]) -> dict[Judgement, float]:
        """What a reply says to a request for `wanted`; what it does not answer is left out."""
        if self.api in typed.PATHS:
            answers = zip(wanted, typed.probabilities_of(self.api, reply, self._asked(wanted)), strict=True)
            return {one: self._value(one, probabilities) for one, probabilities in answers if probabilities is not None}
        [one] = wanted
        inquiry = self.inquiries[one.judge]
        value = inquiry.written.value_of(self.api, reply, hard=inquiry.config.hard)
        return {} if value is None else {one: value}

    def _value(self, one: Judgement, probabilities: Sequence[float]) -> float:
        inquiry = self.inquiries[one.judge]
        return inquiry.question.value(probabilities, hard=inquiry.config.hard)

    def _ask(
        self, calls: Calls[tuple[Judgement, ...], dict[Judgement, float]], wanted: Sequence[Judgement]
    ) -> dict[Judgement, float]:
        """What is answered of `wanted`: what a reply lacks is asked for again, and a refused request in halves."""
        found: dict[Judgement, float] = {}
        halved = False

        def left() -> list[Judgement]:
            return [one for one in wanted if one not in found]

        def read(reply: Mapping[str, Any]) -> dict[Judgement, float] | None:
            self.service.count(INPUT_TOKENS, typed.input_tokens(reply))
            found.update(self.read(reply, left()))
            return None if left() else found

        def again() -> bytes:
            return json_text(self.body(left(), again=True)).encode()

        def refused() -> bool:
            # One question may be at fault, or be one too many for this server.
            nonlocal halved
            halved = len(left()) > 1
            return halved

        calls.ask(PATHS[self.api], json_text(self.body(wanted)).encode(), read, again, refused)
        if halved:
            rest = left()
            for half in (rest[: len(rest) // 2], rest[len(rest) // 2 :]):
                found |= self._ask(calls, half)
        return found

    def _tell_missing(self, missing: int, of: int) -> None:
        service, now = self.service, time.monotonic()
        if now - self._told_missing_at < service.tell_every_s:
            return  # the log counts them all
        self._told_missing_at = now
        why = f"latest fault: {service.breaker.reason}" if service.breaker.reason else "answers could not be read"
        tqdm.write(f"`{service.key}`: {missing} of {of} values are missing ({why})", file=sys.stderr)
