"""The directory of a sweep: what lies where, whose it is, and what its workers take turns at.

    DIR/sweep.json      which sweep this is                 DIR/text/      the text as tokens, which all trials read
    DIR/trials/NNN/     a run of `synpro pretrain`          DIR/study.db   Optuna's storage, where no other one is named

What came of the trials lies beside these, see `outcome`.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

from synpro_engine.config import Record, UserError, atomic_write_text, first_difference, json_text, read_record
from synpro_engine.config.lock import Held, locked, writing
from synpro_engine.cycle.run_layout import REFERENCES, TOKENIZE

_SWEEP, _TEXT, _TRIALS, _STORAGE = "sweep.json", "text", "trials", "study.db"
_TURN = ".turn"
_LOOK_S = 1.0


class SweepRecord(Record):
    """What `sweep.json` says: which sweep a directory holds."""

    name: str
    """The study's name in the storage too."""
    recipe: dict[str, object]
    """Settings that results depend on, before any is varied."""
    over: tuple[str, ...]
    """The ranges."""
    measured: str
    """The held-out text whose loss trials are compared by."""
    storage: str | None
    """URL of the storage, without driver and password; null for the SQLite file in the directory."""


class Place:
    """A sweep's directory."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.text = directory / _TEXT
        """A run that holds the tokens."""
        self.storage = directory / _STORAGE

    def run(self, trial: int) -> Path:
        """A trial's run."""
        return self.directory / _TRIALS / f"{trial:03d}"

    @property
    def most_runs(self) -> int:
        """One more than the highest number of a trial that has a run here."""
        return 1 + max((int(path.name) for path in self.run(0).parent.glob("*") if path.name.isdecimal()), default=-1)

    def turn(self) -> contextlib.AbstractContextManager[None]:
        """For what one worker does at a time; the others wait."""
        self.directory.mkdir(parents=True, exist_ok=True)
        return writing(self.directory / _TURN, wait=True)

    @contextlib.contextmanager
    def claimed(self, record: SweepRecord) -> Iterator[str]:
        """The name of the sweep that is here; where none is, that of `record`, which begins with the end of the block.

        So that a storage that cannot be opened there leaves nothing behind. In a turn. Raises UserError for another
        sweep, which names what differs, and for a directory of something else.
        """
        path = self.directory / _SWEEP
        if not path.exists():
            # What a block that did not end left: a storage, or its journal, with a study of a name that none has.
            own = (_TURN, _STORAGE, _SWEEP)
            if foreign := next((one.name for one in self.directory.iterdir() if not one.name.startswith(own)), None):
                raise UserError(f"{self.directory}: holds {foreign}, and no sweep; give another --dir")
            yield record.name
            atomic_write_text(path, json_text(record.model_dump(mode="json"), indent=2) + "\n")
            return
        stored = read_record(path, SweepRecord)
        before, now = (one.model_dump(mode="json", exclude={"name"}) for one in (stored, record))
        if (difference := first_difference(before, now)) is not None:
            raise UserError(f"{path}: another sweep: {difference}; give another --dir")
        yield stored.name

    def link_text(self, run: Path) -> None:
        """Have a trial's run read the tokens that all share."""
        for name in (TOKENIZE, REFERENCES):
            if (self.text / name).exists() and not os.path.lexists(run / name):
                # Relative, so that the sweep may be moved as a whole.
                (run / name).symlink_to(os.path.relpath(self.text / name, run))


def hold(directory: Path, held: ExitStack, *, wait: bool = False) -> bool:
    """Take the lock of a directory into `held`; False where another process has it, unless it is waited for."""
    while True:
        try:
            held.enter_context(locked(directory))
        except Held:
            if not wait:
                return False
            time.sleep(_LOOK_S)
        else:
            return True
