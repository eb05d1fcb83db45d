"""Whether this rank's main thread still gets on, where it is when it does not, and which rank keeps the others waiting.

A collective that takes too long names whoever waited in it. The rank that it waited for is another one, so when a rank
has not got on for long every rank tells where it is, and the one that has come least far is named.
"""

from __future__ import annotations

import contextlib
import faulthandler
import math
import socket
import sys
import threading
import time
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

_TIMES_LONGEST = 10.0  # how much longer than anything so far a part of training may take, whatever the setting
_DUMP_S = 2.0  # for a file system that may be what hangs
_WAITING = ("/torch/distributed/", "/synpro_engine/dist/")


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a rank is: how many parts of training it has begun, the one it is in, the line that its thread is at."""

    host: str
    parts: int
    part: str
    line: str
    waits: bool
    """For another rank, as its stack says; on a GPU every rank may only seem to compute."""


class HangWatch:
    """One rank's getting on. The main thread says what it begins; another thread looks how long ago that was."""

    def __init__(self, limit_s: float = math.inf) -> None:
        """limit_s: the longest that a part may take; or ten times the longest one so far, where that is longer."""
        self.directory: Path | None = None
        """Where stacks are written, a file a rank."""
        self.stepped = False
        """Whether this process has made a step. What comes before compiles and connects, and is held to no limit."""
        self._limit_s, self._longest_s = limit_s, 0.0
        self._part, self._parts, self._since = "", 0, math.inf
        self._main = threading.main_thread().ident or 0

    def begin(self, part: str) -> None:
        """The main thread begins a part of training, which every rank begins in the same order."""
        self.rest()
        self._part, self._parts, self._since = part, self._parts + 1, time.monotonic()

    def goes_on(self) -> None:
        """The part in hand gets on, in pieces of which ranks may have different numbers: each may take as long."""
        if self._since < math.inf:
            self.rest()
            self._since = time.monotonic()

    def rest(self) -> None:
        """What comes now may take as long as it likes: it is watched otherwise, or not at all."""
        since, self._since = self._since, math.inf
        if since < math.inf:
            self._longest_s = max(self._longest_s, time.monotonic() - since)

    @property
    def hangs(self) -> bool:
        """Whether the part in hand takes too long."""
        limit = max(self._limit_s, _TIMES_LONGEST * self._longest_s) if self.stepped else math.inf
        return time.monotonic() - self._since > limit

    @property
    def minutes(self) -> float:
        """How long the part in hand takes by now."""
        return max(0.0, time.monotonic() - self._since) / 60

    def place(self) -> Place:
        """Where this rank is."""
        frame = sys._current_frames().get(self._main)
        stack = [] if frame is None else traceback.extract_stack(frame)
        waits = any(part in entry.filename for entry in stack[-8:] for part in _WAITING)
        # The innermost line outside of libraries says more than the call that it is stuck in.
        libraries = ("/site-packages/", _WAITING[1])
        ours = [entry for entry in stack if not any(part in entry.filename for part in libraries)]
        at = ours[-1] if ours else None
        line = "" if at is None else f"{at.name} ({Path(at.filename).name}:{at.lineno})"
        return Place(host=socket.gethostname(), parts=self._parts, part=self._part, line=line, waits=waits)

    def dump(self, rank: int) -> None:
        """Write the stacks of all this rank's Python threads to `rank-N.txt`; silent where that cannot be."""
        if self.directory is None:
            return
        directory = self.directory

        def write() -> None:
            with contextlib.suppress(OSError):
                directory.mkdir(parents=True, exist_ok=True)
                with (directory / f"rank-{rank}.txt").open("w") as file:
                    faulthandler.dump_traceback(file, all_threads=True)

        # In a thread of its own, for the job must end even where writing never does.
        writer = threading.Thread(target=write, name="stacks", daemon=True)
        writer.start()
        writer.join(_DUMP_S)

    def verdict(self, places: Mapping[int, Place], ranks: int) -> str:
        """One line: who is behind and where. places: by rank; a rank that does not answer has none."""
        took = f"no step within {self.minutes:.2g} minutes (`parallel.hang_minutes`)"
        where = "" if self.directory is None else f"; the stacks of all ranks are in {self.directory}"
        silent = [rank for rank in range(ranks) if rank not in places]
        if silent:
            return f"{took}: rank {silent[0]} does not answer{where}"
        least = min(place.parts for place in places.values())
        behind = {rank: place for rank, place in places.items() if place.parts == least}
        working = {rank: place for rank, place in behind.items() if not place.waits} or behind
        rank, place = next(iter(sorted(working.items())))
        told = f"rank {rank} on {place.host} is in {place.part}, at {place.line}"
        if len(working) > 1:
            return f"{took}: {len(working)} ranks are as far as each other; {told}{where}"
        return f"{took}: {told}, and the others wait for it{where}"
