"""Ranks that compute slower than the others, which all wait for them: a hot GPU, a busy host, a slow disk."""

from __future__ import annotations

import contextlib
import socket
import statistics
from collections.abc import Iterator
from dataclasses import dataclass

from synpro_engine.backend.spans import BACKWARD, DATA, FORWARD, SpanClock, listening
from synpro_engine.dist import Topology, on_every_rank, say
from synpro_engine.train.config import StragglerConfig

_IN_ROW = 2
"""Looks that must find the same rank: a single slow step is everyone's now and then."""


@dataclass(frozen=True, kw_only=True)
class Slowest:
    """One look at a step: the rank that took longest over its own part of it.

    seconds: of its data, forward and backward. median: of all ranks'.
    """

    rank: int
    host: str
    seconds: float
    data: float
    median: float


class Stragglers:
    """Times every so many steps on every rank, and tells of one that is the slowest again and again. Collective.

    A rank's own part is what it reads, and its forward and backward passes, without the waits for other stages and for
    gradients of other replicas. Ranks of one tensor-parallel group wait for each other within these passes: they look
    alike, and the first one is named for all. On a GPU a look waits for the device once.
    """

    def __init__(self, topology: Topology, config: StragglerConfig) -> None:
        self._topology, self._config = topology, config
        self._steps = 0
        self._slow: tuple[int, int] = (-1, 0)
        """The rank that was slow at the last look, and at how many in a row."""
        self._slowest: Slowest | None = None

    def take(self) -> Slowest | None:
        """What the last look found, once."""
        found, self._slowest = self._slowest, None
        return found

    @contextlib.contextmanager
    def look(self, step: int) -> Iterator[None]:
        """Time the step in the `with` block, where its turn has come."""
        self._steps += 1
        if self._steps % self._config.every:
            yield
            return
        clock = SpanClock(self._topology.device)
        with listening(clock):
            yield
        seconds = clock.seconds()
        here = (seconds.get(DATA, 0.0), sum(seconds.get(part, 0.0) for part in (DATA, FORWARD, BACKWARD)))
        ranks = on_every_rank(self._topology, lambda: (*here, socket.gethostname()))
        longest = [seconds for _, seconds, _ in ranks]
        rank = max(range(len(ranks)), key=longest.__getitem__)
        data, whole, host = ranks[rank]
        # Of the lower half's end: of two ranks the median is then the quicker one, and not the mean of both.
        found = Slowest(rank=rank, host=host, seconds=whole, data=data, median=statistics.median_low(longest))
        self._slowest = found
        if found.seconds < self._config.ratio * found.median:
            self._slow = (-1, 0)
            return
        before, times = self._slow
        self._slow = (found.rank, times + 1 if found.rank == before else 1)
        if self._slow[1] == _IN_ROW:  # told once, and again only after it was well in between
            times_median = found.seconds / max(found.median, 1e-9)
            say(
                self._topology,
                f"step {step}: rank {found.rank} on {found.host} is slow: {found.seconds:.3g} s of its own"
                f" ({found.data:.2g} s reading), {times_median:.2f} times the ranks' median; the others wait for it",
            )
