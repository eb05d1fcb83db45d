"""Many calls to one service at a time: shared out over threads, made again with patience, counted.

What is not answered is None, and never a value. Endpoints wait for the network nearly all of the time, and the job
around them is synchronous, so plain threads do: see `benchmarks/judges` for what they reach.
"""

from __future__ import annotations

import random
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Generic, TypeVar

from tqdm import tqdm

from synpro_engine.config.errors import Stopped
from synpro_engine.remote.config import EndpointConfig
from synpro_engine.remote.endpoint import CallFault, Endpoint
from synpro_engine.remote.patience import CircuitBreaker, backoff_s

COUNTED = ("calls", "kept", "faults", "refused", "unreadable", "missing")
"""calls made; values that were there already; calls without an answer, and of these the ones that would be refused
again; answers that could not be read; values that were given up."""
_LOOK_S = 0.5
_TOLD_EVERY_S = 60.0
_CERTAIN = 2  # times `tries` in a row that a question fails at a service that is well, before it is at fault itself

K = TypeVar("K")
V = TypeVar("V")


class Service:
    """One endpoint, as one rank calls it."""

    def __init__(
        self,
        key: str,
        config: EndpointConfig,
        *,
        ranks: int = 1,
        asked_to_stop: Callable[[], bool] = lambda: False,
        tell_every_s: float = _TOLD_EVERY_S,
        counted: Sequence[str] = COUNTED,
    ) -> None:
        """key: the setting that holds `config`, for messages. ranks: how many share `config.concurrency`.

        asked_to_stop: looked at while an outage is waited for. counted: what `take_counts` tells. UserError for an API
        key that is not there.
        """
        self._counted = counted
        self.key, self.config = key, config
        self.endpoint, self.breaker = Endpoint(config, key), CircuitBreaker()
        self.threads = max(1, config.concurrency // ranks)
        self.asked_to_stop, self.tell_every_s = asked_to_stop, tell_every_s
        self.is_well: Callable[[float], bool] = lambda seconds: False
        """Whether it answers a small call within so many seconds; set by whoever knows what may be asked. A question
        that fails time and again is then at fault itself."""
        # Of its own, for the seeds of a run must not hang on what a network does.
        self.jitter, self.lock = random.Random(), threading.Lock()
        self.refusal = ""
        """What it said of the first question that it refused."""
        self.counts: Counter[str] = Counter()
        """By the names of `COUNTED`, or others."""

    @property
    def waits(self) -> bool:
        """Whether an outage is waited for."""
        return self.config.outage == "wait"

    def each(self, wanted: Iterable[K], value: Callable[[Calls[K, Any], K], V | None]) -> dict[K, V | None]:
        """`value` of each of `wanted`, as its thread asks for it through `Calls.ask`; None where it is given up.

        Raises Stopped when the job is asked to stop in an outage that is waited for, and what `value` raises.
        """
        return Calls(self, wanted, value).run()

    def take_counts(self) -> dict[str, int]:
        """The counts since the last call."""
        with self.lock:
            counts, self.counts = self.counts, Counter()
        return {name: counts[name] for name in self._counted}

    def count(self, what: str, number: int = 1) -> None:
        """Add to a count."""
        with self.lock:
            self.counts[what] += number


class Calls(Generic[K, V]):
    """The questions of one step on their way: each worker takes the next one until none is left."""

    def __init__(self, service: Service, wanted: Iterable[K], value: Callable[[Calls[K, Any], K], V | None]) -> None:
        self._service, self._config, self._breaker, self._value = service, service.config, service.breaker, value
        self._values: dict[K, V | None] = dict.fromkeys(wanted)
        self._left = iter(list(self._values))
        self._end = time.monotonic() + self._config.deadline_s
        self._over, self._faults = threading.Event(), list[BaseException]()
        self._told_at = time.monotonic()

    def run(self) -> dict[K, V | None]:
        """Each one's value, None where it was given up."""
        count = min(self._service.threads, len(self._values))
        # Daemons, and not a pool's: at a second Ctrl-C nobody waits for the calls under way.
        threads = [threading.Thread(target=self._work, name="call", daemon=True) for _ in range(count)]
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
        self._service.counts["missing"] += sum(value is None for value in self._values.values())
        return self._values

    def _look(self) -> None:
        """In an outage: tell the user now and then, and heed a wish to stop."""
        service, failing_s, now = self._service, self._breaker.failing_s, time.monotonic()
        if not failing_s:
            return
        every, reason = service.tell_every_s, self._breaker.reason
        if failing_s >= every and now - self._told_at >= every:
            self._told_at = now
            doing = "waiting for it" if service.waits else "its answers will be missing"
            told = f"`{service.key}.endpoint`: no answer for {failing_s / 60:.0f} min ({reason}); {doing}"
            tqdm.write(told, file=sys.stderr)
        if service.waits and service.asked_to_stop():
            address = self._config.endpoint
            raise Stopped(f"`{service.key}.endpoint`: {address} did not answer ({reason}) when it was to stop")

    def _work(self) -> None:
        try:
            while not self._over.is_set():
                with self._service.lock:
                    wanted = next(self._left, None)
                if wanted is None:
                    return
                self._values[wanted] = self._value(self, wanted)
        # A full disk under a cache, or a bug: the main thread raises it.
        except BaseException as error:
            self._faults.append(error)
            self._over.set()

    def ask(
        self,
        path: str,
        request: bytes,
        read: Callable[[Mapping[str, Any]], V | None],
        again: Callable[[], bytes] | None = None,
        refused: Callable[[], bool] = lambda: False,
    ) -> V | None:
        """What `read` makes of the answer to a request; None where that is given up. For the thread of one value.

        read: None for an answer that it cannot read, and after which `again`, where it is given, makes the request.
        refused: told that the very same request would be refused again; True where the caller knows a way on.
        """
        service, config, breaker, waits = self._service, self._config, self._breaker, self._service.waits
        faults = unreadable = in_row = 0
        while not self._over.is_set():
            if (pause := breaker.pause_s()) > 0.0:
                if not self._pause(pause):
                    return None
                continue
            left = config.timeout_s if waits else min(config.timeout_s, self._end - time.monotonic())
            if left <= 0.0:
                return None
            try:
                service.count("calls")
                reply = service.endpoint.post(path, request, left)
            except CallFault as fault:
                service.count("unreadable" if fault.unreadable else "faults")
                faults, in_row = faults + 1, in_row + 1 if fault.may_be_final else 0
                if not waits:  # whoever waits has an outage of garbage in mind too
                    unreadable += fault.unreadable
                if fault.final or (waits and self._is_at_fault(in_row)):
                    breaker.succeeded()  # the service is well, and the question is not
                    if not refused():
                        self._tell_once(fault)
                    return None
                breaker.failed(fault.reason, fault.retry_after_s)
                if not waits and (faults >= config.tries or unreadable >= config.unreadable_tries):
                    return None
                if not self._pause(max(fault.retry_after_s, backoff_s(faults, service.jitter))):
                    return None
                continue
            breaker.succeeded()
            value = read(reply)
            if value is not None:
                return value
            service.count("unreadable")
            unreadable += 1
            if unreadable >= config.unreadable_tries:
                return None
            request = request if again is None else again()
        return None

    def _is_at_fault(self, in_row: int) -> bool:
        """Whether a question that failed so many times in a row is at fault: whether the service is well by then.

        It would be waited for as an outage is: for ever, and untold while others are answered. A service that fails at
        random, be it three times of ten, hardly ever does so at one question as often as is asked here.
        """
        tries = _CERTAIN * self._config.tries
        if not in_row or in_row % tries:
            return False
        self._service.count("calls")
        return self._service.is_well(self._config.timeout_s)

    def _pause(self, seconds: float) -> bool:
        """Sleep, unless the value is given up by then: False."""
        # Down for longer than a step may take: another whole wait at each step would only cost time.
        hopeless = self._breaker.failing_s > self._config.deadline_s
        if not self._service.waits and (hopeless or time.monotonic() + seconds > self._end):
            return False
        self._over.wait(seconds)
        return True

    def _tell_once(self, fault: CallFault) -> None:
        service = self._service
        service.count("refused")
        with service.lock:
            first, service.refusal = not service.refusal, service.refusal or fault.reason
        if first:
            tqdm.write(f"`{service.key}`: a question was refused: {fault.reason}", file=sys.stderr)
