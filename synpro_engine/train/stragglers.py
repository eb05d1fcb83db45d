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
    """One look at a step: the group of ranks that took longest over its own part of it.

    rank, host: the group's first. seconds: of its data, forward and backward. median: of all groups'. size: its ranks.
    """

    rank: int
    host: str
    seconds: float
    data: float
    median: float
    size: int


class Stragglers:
    """Times every so many steps on every rank, and tells of one that is the slowest again and again. Collective.

    A rank's own part is what it reads, and its forward and backward passes, without the waits for other stages and for
    gradients and weights of other replicas. Ranks that share matrices or sequences (tp x cp) wait for each other within
    these passes: they look alike, so groups of them are compared, and the first rank is named for all. On a GPU a look
    waits for the device once.
    """

    def __init__(self, topology: Topology, config: StragglerConfig) -> None:
        self._topology, self._config = topology, config
        self._steps = 0
        self._slow: tuple[int, int] = (-1, 0)
        """The first rank of what was slow at the last look, and at how many in a row."""
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
        found = self._slowest = self._compared(*here)
        if found.seconds < self._config.ratio * found.median:
            self._slow = (-1, 0)
            return
        before, times = self._slow
        self._slow = (found.rank, times + 1 if found.rank == before else 1)
        if self._slow[1] == _IN_ROW:  # told once, and again only after it was well in between
            times_median = found.seconds / max(found.median, 1e-9)
            alike = f" or one of the {found.size - 1} that compute with it" if found.size > 1 else ""
            say(
                self._topology,
                f"step {step}: rank {found.rank} on {found.host}{alike} is slow: {found.seconds:.3g} s of its own"
                f" ({found.data:.2g} s reading), {times_median:.2f} times the median; the others wait for it",
            )

    def _compared(self, data: float, whole: float) -> Slowest:
        """The slowest group, of this rank's seconds and all others'. Collective."""
        topology = self._topology
        ranks = on_every_rank(
            topology, lambda: ((topology.pp.rank, topology.dp.rank), data, whole, socket.gethostname())
        )
        groups: dict[tuple[int, int], list[int]] = {}
        for rank, (group, *_) in enumerate(ranks):
            groups.setdefault(group, []).append(rank)
        longest = {group: max(ranks[rank][2] for rank in members) for group, members in groups.items()}
        slowest = max(longest, key=longest.__getitem__)
        members = groups[slowest]
        return Slowest(
            rank=members[0],
            host=ranks[members[0]][3],
            seconds=longest[slowest],
            data=max(ranks[rank][1] for rank in members),
            # Of the lower half's end: of two groups the median is then the quicker one, and not the mean of both.
            median=statistics.median_low(longest.values()),
            size=len(members),
        )
