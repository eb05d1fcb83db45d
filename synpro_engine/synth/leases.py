"""Who works on which unit: leases on a file system that all workers see, of one job or of several.

A lease is a file that only one worker can make. Its holder shows that it lives by touching a file of its own; a lease
of a worker that has not for too long may be taken over. Two workers may so end up with the same unit, where one was
only paused: whoever reads results takes each unit once (see `ledger`), and both have written the same.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import uuid
from pathlib import Path
from types import TracebackType
from typing import Self

from synpro_engine.config import Record, UserError, json_text, read_record

_LEASES, _WORKERS = "leases", "workers"
_A_FOLDER = 1000  # leases: file systems grow slow with more in one


class Worker(Record):
    """A worker as its own file names it."""

    host: str
    pid: int
    helper: bool
    """Of a job that joined the one which owns the directory."""


class Leases:
    """Context manager: one worker's leases on numbered units below a directory. Methods are not collective.

    A lease stays when its unit is done, so that making one says that nobody has begun with it.
    """

    def __init__(self, directory: Path, patience_s: float, *, helper: bool = False) -> None:
        """patience_s: how long a worker may show no sign of life before its leases are taken over."""
        self.worker = uuid.uuid4().hex[:12]
        self._leases, self._workers = directory / _LEASES, directory / _WORKERS
        self._alive, self._held = self._workers / self.worker, set[int]()
        self._patience_s, self._helper, self._over = patience_s, helper, threading.Event()

    def __enter__(self) -> Self:
        """Show signs of life from now on."""
        for folder in (self._leases, self._workers):
            folder.mkdir(exist_ok=True)
        about = Worker(host=socket.gethostname(), pid=os.getpid(), helper=self._helper)
        self._alive.write_text(json_text(about.model_dump()))
        # A thread, for a unit may take longer than anybody's patience.
        self._beat = threading.Thread(target=self._live, name="lease", daemon=True)
        self._beat.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Give back what was begun and not done."""
        self._over.set()
        self._beat.join()
        for unit in self._held:
            if _holder(self._lease(unit)) == self.worker:  # else it was taken over
                self._lease(unit).unlink(missing_ok=True)
        self._alive.unlink(missing_ok=True)

    def _live(self) -> None:
        while not self._over.wait(self._patience_s / 8):
            with contextlib.suppress(FileNotFoundError):  # gone with the directory, whose work is over
                os.utime(self._alive)

    def _lease(self, unit: int) -> Path:
        return self._leases / str(unit // _A_FOLDER) / str(unit)

    def make(self, unit: int) -> bool:
        """Whether the unit is this worker's now, for nobody had it before."""
        lease = self._lease(unit)
        try:
            lease.parent.mkdir(exist_ok=True)
            with lease.open("x") as file:
                file.write(self.worker)
        except FileExistsError:
            return False
        except FileNotFoundError:  # the whole directory, for all of its work is over
            return False
        self._held.add(unit)
        return True

    def take_over(self, unit: int) -> bool:
        """The same of a unit that `is_abandoned`, where this worker is the first who comes."""
        # By renaming, in which one of several who try succeeds.
        stale = self._workers / f"{self.worker}.stale"
        with contextlib.suppress(FileNotFoundError):
            os.rename(self._lease(unit), stale)
            stale.unlink()
        return self.make(unit)

    def done(self, unit: int) -> None:
        """The results of a unit of this worker's are on disk."""
        self._held.discard(unit)

    def is_abandoned(self, unit: int) -> bool:
        """Whether a unit is leased to a worker that shows no sign of life; done or not, this does not know."""
        lease = self._lease(unit)
        holder = _holder(lease)
        if holder is None:
            return False
        # One that has not written its name yet is as old as its lease.
        sign = self._workers / holder if holder else lease
        try:
            beat = sign.stat().st_mtime
            if holder and _is_gone(read_record(sign, Worker)):
                return True
        except (FileNotFoundError, UserError):
            return True  # it left, or its file is not whole: it is about to
        # By the file system's clock on both sides: those of two machines may differ by minutes.
        os.utime(self._alive)
        return self._alive.stat().st_mtime - beat >= self._patience_s


def forget_owners(directory: Path) -> None:
    """Drop the workers of earlier starts of the job that owns `directory`, so that nobody waits for them."""
    for place in (directory / _WORKERS).glob("*"):
        with contextlib.suppress(FileNotFoundError, UserError):
            if not read_record(place, Worker).helper:
                place.unlink()


def _holder(lease: Path) -> str | None:
    try:
        return lease.read_text()
    except FileNotFoundError:
        return None


def _is_gone(worker: Worker) -> bool:
    """Whether a worker of this machine has ended: nobody has to wait for a sign of it."""
    if worker.host != socket.gethostname():
        return False
    try:
        os.kill(worker.pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:  # it is there, and somebody else's
        return False
    return False
