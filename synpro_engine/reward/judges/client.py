"""Many questions to one judge at a time: what was answered before is kept, and what is not answered is NaN."""

from __future__ import annotations

import hashlib
import math
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from synpro_engine.config import json_text
from synpro_engine.remote import Calls, Service
from synpro_engine.reward.judges.cache import AnswerCache
from synpro_engine.reward.judges.config import JudgeConfig
from synpro_engine.reward.judges.wire import PATHS, request_body, value_of
from synpro_engine.reward.judges.written import Question

_TOLD_EVERY_S = 60.0


class Client:
    """One judge, as one rank asks it. Values are kept in memory and, with a directory, on disk."""

    def __init__(
        self,
        name: str,
        config: JudgeConfig,
        question: Question,
        *,
        ranks: int = 1,
        cache: Path | None = None,
        asked_to_stop: Callable[[], bool] = lambda: False,
        tell_every_s: float = _TOLD_EVERY_S,
    ) -> None:
        """name: the reward's. Others as `Service` takes them. UserError for an API key that is not there."""
        self._config, self._question = config, question
        self.service = Service(
            f"reward.judges.{name}", config, ranks=ranks, asked_to_stop=asked_to_stop, tell_every_s=tell_every_s
        )
        self._cache = AnswerCache(cache if config.cache else None)
        self._told_missing_at = -math.inf

    @property
    def version(self) -> str:
        """The model's name and the version of the question."""
        return f"{self._config.model}, question {self._question.version}"

    def values(self, pairs: Sequence[tuple[str, str]]) -> list[float]:
        """The question's value for each (text, source), NaN where it was given up.

        Raises Stopped when the job is asked to stop in an outage that is waited for.
        """
        self._cache.refresh()
        values = self.service.each(pairs, self._value)
        if missing := sum(value is None for value in values.values()):
            self._tell_missing(missing, len(values))
        return [math.nan if (value := values[pair]) is None else value for pair in pairs]

    def _request(self, text: str, source: str, *, again: bool = False) -> bytes:
        return json_text(request_body(self._config, self._question, text, source, again=again)).encode()

    def _hash(self, request: bytes) -> bytes:
        """Of all that an answer hangs on. Not of the address: the same model may be served elsewhere tomorrow."""
        return hashlib.sha256(self._question.version.encode() + request).digest()[:16]

    def _value(self, calls: Calls[tuple[str, str], float], pair: tuple[str, str]) -> float | None:
        """Of one pair: one that is known already, or what is answered now."""
        # Here, since hashing a batch would hold up its first call.
        request = self._request(*pair)
        key = self._hash(request)
        if (known := self._cache.get(key)) is not None:
            self.service.count("kept")
            return known

        def read(reply: Any) -> float | None:
            return value_of(self._question, self._config.api, reply)

        path = PATHS[self._config.api]
        value = calls.ask(path, request, read, again=lambda: self._request(*pair, again=True))
        if value is not None:
            self._cache.put(key, value)
        return value

    def _tell_missing(self, missing: int, of: int) -> None:
        service, now = self.service, time.monotonic()
        if now - self._told_missing_at < service.tell_every_s:
            return  # the log counts them all
        self._told_missing_at = now
        why = f"latest fault: {service.breaker.reason}" if service.breaker.reason else "answers could not be read"
        tqdm.write(f"`{service.key}`: {missing} of {of} values are missing ({why})", file=sys.stderr)

    def probe(self) -> dict[str, Any]:
        """The answer to one question, once, with nothing kept; CallFault where there is none."""
        request = self._request("The sun rose at six.", "At six the sun rose.")
        return self.service.endpoint.post(PATHS[self._config.api], request, self._config.timeout_s)

    def models(self) -> dict[str, Any]:
        """The endpoint's own list of its models; CallFault where it gives none."""
        return self.service.endpoint.get("models", self._config.timeout_s)
