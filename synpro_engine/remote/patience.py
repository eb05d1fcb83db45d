"""When a call that failed may be made again: back-off with jitter for one call, a circuit breaker for all of them."""

from __future__ import annotations

import random
import threading
import time

_FIRST_S, _LONGEST_S = 0.5, 30.0
_OPENS_AFTER = 8
"""Faults in a row, over all threads, after which a service is down rather than unlucky."""


def backoff_s(faults: int, jitter: random.Random) -> float:
    """A pause after so many faults of one call, in seconds: anywhere up to a bound that doubles ("full jitter").

    Evenly spread, so that calls which failed together do not come back together (Brooker 2015, AWS Architecture Blog).
    """
    return jitter.uniform(0.0, min(_LONGEST_S, _FIRST_S * 2.0 ** min(faults, 10)))


class CircuitBreaker:
    """Closed while a service answers. Once it does not, it is left alone but for one call now and then.

    For many threads: `pause_s` before each call, `succeeded` or `failed` after it.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._faults = self._tried = 0  # in a row; calls that were let through while it was open
        self._failing_since: float | None = None
        self._not_before = 0.0
        self.reason = ""
        """Of the latest fault."""

    def pause_s(self) -> float:
        """Seconds to wait before asking again; 0 is the leave to call, which while it is open only one thread gets."""
        with self._lock:
            now = time.monotonic()
            if now < self._not_before:
                return self._not_before - now
            if self._faults >= _OPENS_AFTER:
                # The one that tries; the others wait at least as long as it may take to fail.
                self._tried += 1
                self._not_before = now + self._cooldown_s
            return 0.0

    def succeeded(self) -> None:
        """An answer came: closed."""
        with self._lock:
            self._faults, self._tried, self._failing_since, self._not_before = 0, 0, None, 0.0

    def failed(self, reason: str, retry_after_s: float = 0.0) -> None:
        """No answer; retry_after_s: how long the server asks to be left alone, by whichever call."""
        with self._lock:
            now = time.monotonic()
            self._faults, self.reason = self._faults + 1, reason
            if self._failing_since is None:
                self._failing_since = now
            pause = max(retry_after_s, self._cooldown_s if self._faults >= _OPENS_AFTER else 0.0)
            self._not_before = max(self._not_before, now + pause)

    @property
    def _cooldown_s(self) -> float:
        return min(_LONGEST_S, _FIRST_S * 2.0 ** min(self._tried, 10))

    @property
    def failing_s(self) -> float:
        """Seconds since the first fault after the last answer; 0 where the last call was answered."""
        since = self._failing_since
        return 0.0 if since is None else time.monotonic() - since
