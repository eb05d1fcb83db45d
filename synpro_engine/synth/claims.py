"""Units of a work list, dealt out as workers ask for them: a slow worker holds nobody up, and a dead one no unit."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from synpro_engine.synth.leases import Leases
from synpro_engine.synth.ledger import Ledgers

ALL_DONE: Final = -1
WAIT: Final = -2
"""What `Claims.claim` says in place of a unit: nothing is left, or all that is left is in other hands."""
_LOOK_S, _LOOK_S_A_LEDGER = 5.0, 0.1  # between looks at what others have done: a file is opened for each writer


class Claims:
    """What is done of a work list, by all workers, and what this one may do next. Not collective."""

    def __init__(self, directory: Path, units: int, leases: Leases, *, start: int) -> None:
        """start: the unit that this worker begins with; it goes on behind it, so that workers seldom meet."""
        self._ledgers, self._leases, self._at = Ledgers(directory), leases, start
        self._done, self.left, self.prompts = bytearray(units), units, 0
        """`prompts`: of the units that are done."""
        self._looked = -1e9
        self.look()

    def look(self) -> None:
        """See what is done by now."""
        for commit in self._ledgers.fresh():
            self.done(commit.unit, commit.counts.prompts)
        self._looked = time.monotonic()

    def done(self, unit: int, prompts: int) -> None:
        """Note that a unit of so many prompts is on disk."""
        if not self._done[unit]:
            self._done[unit] = 1
            self.left, self.prompts = self.left - 1, self.prompts + prompts

    def claim(self) -> int:
        """The number of a unit that is now this worker's, or `ALL_DONE`, or `WAIT`."""
        if not self._ledgers.directory.exists():  # another job, which this one helps, has finished all of it
            return ALL_DONE
        if time.monotonic() - self._looked > _LOOK_S + _LOOK_S_A_LEDGER * self._ledgers.count:
            self.look()
        abandoned = []
        for unit in self._open():
            if self._leases.make(unit):
                self._at = unit + 1
                return unit
            if self._leases.is_abandoned(unit):
                abandoned.append(unit)
        # Done by whoever left it, most of them: only the ledgers know.
        self.look()
        for unit in abandoned:
            if not self._done[unit] and self._leases.take_over(unit):
                self._at = unit + 1
                return unit
        return WAIT if self.left else ALL_DONE

    def _open(self) -> Iterator[int]:
        """Units that are not known to be done, from this worker's place on and then from the beginning."""
        for begin, end in ((self._at, len(self._done)), (0, self._at)):
            unit = self._done.find(0, begin, end)
            while unit >= 0:
                yield unit
                unit = self._done.find(0, unit + 1, end)
