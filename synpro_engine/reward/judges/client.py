"""Many questions to one judge at a time: shared out over threads, asked again with patience, kept, counted.

What is not answered is NaN, and never a number. Endpoints wait for the network nearly all of the time, and the job
around them is synchronous, so plain threads do: see `benchmarks/judges` for what they reach.
"""

from __future__ import annotations

import hashlib
import math
import random
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from synpro_engine.config import json_text
from synpro_engine.config.errors import Stopped
from synpro_engine.reward.judges.cache import AnswerCache
from synpro_engine.reward.judges.config import JudgeConfig
from synpro_engine.reward.judges.endpoint import CallFault, Endpoint
from synpro_engine.reward.judges.patience import CircuitBreaker, backoff_s
from synpro_engine.reward.judges.questions import Question
from synpro_engine.reward.judges.wire import PATHS, request_body, value_of

COUNTED = ("calls", "kept", "faults", "refused", "unreadable", "missing")
"""calls made; values that were there already; calls without an answer, and of these the ones that would be refused
again; answers that could not be read; values that were given up."""
_LOOK_S = 0.5
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
        """name: the reward's. ranks: how many share `config.concurrency`. UserError for an API key that is not there.

        asked_to_stop: looked at while an outage is waited for.
        """
        self._key, self._config, self._question = f"reward.judges.{name}", config, question
        self._endpoint, self._breaker = Endpoint(config, self._key), CircuitBreaker()
        self._threads = max(1, config.concurrency // ranks)
        self._cache = AnswerCache(cache if config.cache else None)
        self._asked_to_stop, self._tell_every_s = asked_to_stop, tell_every_s
        # Of its own, for the seeds of a run must not hang on what a network does.
        self._jitter, self._lock = random.Random(), threading.Lock()
        self.told_refusal, self.told_missing_at = False, -math.inf
        self.counts: Counter[str] = Counter()
        """By the names of `COUNTED`."""

    @property
    def version(self) -> str:
        """The model's name and the version of the question."""
        return f"{self._config.model}, question {self._question.version}"

    def values(self, pairs: Sequence[tuple[str, str]]) -> list[float]:
        """The question's value for each (text, source), NaN where it was given up.

        Raises Stopped when the job is asked to stop in an outage that is waited for.
        """
        self._cache.refresh()
        values = _Batch(self, dict.fromkeys(pairs)).run()
        return [math.nan if values[pair] is None else values[pair] for pair in pairs]  # pyright: ignore[reportReturnType]

    def take_counts(self) -> dict[str, int]:
        """The counts since the last call."""
        with self._lock:
            counts, self.counts = self.counts, Counter()
        return {name: counts[name] for name in COUNTED}

    def _request(self, text: str, source: str, *, again: bool = False) -> bytes:
        return json_text(request_body(self._config, self._question, text, source, again=again)).encode()

    def _hash(self, request: bytes) -> bytes:
        """Of all that an answer hangs on. Not of the address: the same model may be served elsewhere tomorrow."""
        return hashlib.sha256(self._question.version.encode() + request).digest()[:16]

    def probe(self) -> dict[str, Any]:
        """The answer to one question, once, with nothing kept; CallFault where there is none."""
        request = self._request("The sun rose at six.", "At six the sun rose.")
        return self._endpoint.post(PATHS[self._config.api], request, self._config.timeout_s)

    def models(self) -> dict[str, Any]:
        """The endpoint's own list of its models; CallFault where it gives none."""
        return self._endpoint.get("models", self._config.timeout_s)


class _Batch:
    """The questions of one step on their way: each worker takes the next one until none is left."""

    def __init__(self, client: Client, wanted: Iterable[tuple[str, str]]) -> None:
        self._client, self._config, self._breaker = client, client._config, client._breaker
        self._values: dict[tuple[str, str], float | None] = dict.fromkeys(wanted)
        self._left = iter(list(self._values))
        self._end = time.monotonic() + self._config.deadline_s
        self._waits = self._config.outage == "wait"
        self._over, self._faults = threading.Event(), list[BaseException]()
        self._told_at = time.monotonic()

    def run(self) -> dict[tuple[str, str], float | None]:
        """Each pair's value, None where it was given up."""
        count = min(self._client._threads, len(self._values))
        # Daemons, and not a pool's: at a second Ctrl-C nobody waits for the calls under way.
        threads = [threading.Thread(target=self._work, name="judge", daemon=True) for _ in range(count)]
        for thread in threads:
            thread.start()
        try:
            for thread in threads:
                while thread.is_alive():
                    thread.join(_LOOK_S)
                    self._look()
        finally:
            self._over.set()
        for fault in self._faults:
            raise fault
        if missing := sum(value is None for value in self._values.values()):
            self._client.counts["missing"] += missing
            self._tell_missing(missing)
        return self._values

    def _tell_missing(self, missing: int) -> None:
        client, now = self._client, time.monotonic()
        if now - client.told_missing_at < client._tell_every_s:
            return  # the log counts them all
        client.told_missing_at = now
        why = f"latest fault: {self._breaker.reason}" if self._breaker.reason else "answers could not be read"
        told = f"`{client._key}`: {missing} of {len(self._values)} values are missing ({why})"
        tqdm.write(told, file=sys.stderr)

    def _look(self) -> None:
        """In an outage: tell the user now and then, and heed a wish to stop."""
        breaker, config, key = self._breaker, self._config, self._client._key
        failing_s, now = breaker.failing_s, time.monotonic()
        if not failing_s:
            return
        every = self._client._tell_every_s
        if failing_s >= every and now - self._told_at >= every:
            self._told_at = now
            doing = "waiting for it" if self._waits else "its values will be missing"
            told = f"`{key}.endpoint`: no answer for {failing_s / 60:.0f} min ({breaker.reason}); {doing}"
            tqdm.write(told, file=sys.stderr)
        if self._waits and self._client._asked_to_stop():
            raise Stopped(f"`{key}.endpoint`: {config.endpoint} did not answer ({breaker.reason}) when it was to stop")

    def _work(self) -> None:
        try:
            while not self._over.is_set():
                with self._client._lock:
                    pair = next(self._left, None)
                if pair is None:
                    return
                self._values[pair] = self._value(*pair)
        # A full disk under the cache, or a bug: the main thread raises it.
        except BaseException as error:
            self._faults.append(error)
            self._over.set()

    def _value(self, text: str, source: str) -> float | None:
        """Of one pair: one that is known already, or what is answered now."""
        client = self._client
        # Here, since hashing a batch would hold up its first call.
        request = client._request(text, source)
        key = client._hash(request)
        if (known := client._cache.get(key)) is not None:
            self._count("kept")
            return known
        value = self._ask(request, lambda: client._request(text, source, again=True))
        if value is not None:
            client._cache.put(key, value)
        return value

    def _ask(self, request: bytes, again: Callable[[], bytes]) -> float | None:
        """The value of one question, None where it is given up; again: the request after an unreadable answer."""
        client, config, breaker = self._client, self._config, self._breaker
        faults = unreadable = 0
        while not self._over.is_set():
            if (pause := breaker.pause_s()) > 0.0:
                if not self._pause(pause):
                    return None
                continue
            left = config.timeout_s if self._waits else min(config.timeout_s, self._end - time.monotonic())
            if left <= 0.0:
                return None
            try:
                self._count("calls")
                reply = client._endpoint.post(PATHS[config.api], request, left)
            except CallFault as fault:
                self._count("faults")
                if fault.final:
                    breaker.succeeded()  # the service is well, and the question is not
                    self._tell_once(fault)
                    return None
                faults += 1
                breaker.failed(fault.reason, fault.retry_after_s)
                if not self._waits and faults >= config.tries:
                    return None
                if not self._pause(max(fault.retry_after_s, backoff_s(faults, client._jitter))):
                    return None
                continue
            breaker.succeeded()
            value = value_of(client._question, config.api, reply)
            if value is not None:
                return value
            self._count("unreadable")
            unreadable, request = unreadable + 1, again()
            if unreadable >= config.unreadable_tries:
                return None
        return None

    def _pause(self, seconds: float) -> bool:
        """Sleep, unless the value is given up by then: False."""
        # Down for longer than a step may take: another whole wait at each step would only cost time.
        hopeless = self._breaker.failing_s > self._config.deadline_s
        if not self._waits and (hopeless or time.monotonic() + seconds > self._end):
            return False
        self._over.wait(seconds)
        return True

    def _tell_once(self, fault: CallFault) -> None:
        self._count("refused")
        with self._client._lock:
            first, self._client.told_refusal = not self._client.told_refusal, True
        if first:
            tqdm.write(f"`{self._client._key}`: a question was refused: {fault.reason}", file=sys.stderr)

    def _count(self, what: str) -> None:
        with self._client._lock:
            self._client.counts[what] += 1
