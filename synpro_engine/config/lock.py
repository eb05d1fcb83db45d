"""One writer at a time in a run's directory, on local and on network file systems, whatever becomes of the writers.

Locks are numbered files `lock/N.json`; the highest one counts. Its holder keeps an flock on it and changes its time
every few seconds. Whoever wants the directory must find the highest lock given back or its holder dead, and then makes
number N + 1 by `link`, which one of several succeeds in. The highest file stays when it is given back, so that a number
never comes twice.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import shlex
import socket
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from synpro_engine.config.errors import UserError, without_credentials
from synpro_engine.config.json_text import json_text

LOCK = "lock"
# Twelve beats fit the patience: a network file system may hold back a change of time for a minute.
BEAT_S = 10.0
"""Seconds between two signs of life."""
PATIENCE_S = 120.0
"""Seconds without one after which a holder of whom nothing else is known counts as dead."""
_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK)  # what file systems without hard links say
# What says that there is no flock; EBADF is NFS's answer for a file that is open for reading, as a directory must be.
_NO_FLOCK = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL, errno.EBADF)


class Held(UserError):
    """Another process, which shows signs of life, has the directory."""


@dataclass(frozen=True, kw_only=True)
class Holder:
    """Who has, or last had, the directory."""

    host: str
    boot: str
    """Of the running kernel: on the same one, a lost flock means a dead process."""
    pid: int
    command: str
    since: str
    flock: bool
    """Whether the file system gave an flock."""
    released: bool = False

    def __str__(self) -> str:
        """In words."""
        return f"process {self.pid} on {self.host} (`{self.command}`, since {self.since})"


@contextlib.contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Hold the directory, which is made where it is not there, for the length of the block.

    Raises Held, which names the holder, when another process has it. A holder that was killed is noticed: at once
    on its own machine, elsewhere after `PATIENCE_S` without a sign of life.
    """
    place = directory / LOCK
    # In a directory of its own, so that numbered files need not be told from a run's.
    place.mkdir(parents=True, exist_ok=True)
    number, file = _acquire(directory, place)
    ended = threading.Event()

    def show_life() -> None:
        while not ended.wait(BEAT_S):
            with contextlib.suppress(OSError):  # a file system that is away for a while; the next beat may reach it
                # The time and not the content: a beat must not need space on a disk that is full.
                os.utime(_path(place, number))

    # Daemon, for a main thread that dies must not be kept alive by its own sign of life.
    beat = threading.Thread(target=show_life, daemon=True)
    beat.start()
    try:
        yield
    finally:
        # The beat ends first: behind the release it would touch a lock that is another's by now.
        ended.set()
        beat.join()
        _release(place, number)
        os.close(file)


def is_held(directory: Path) -> bool:
    """Whether a process has the directory that is alive, as far as one look tells; nothing is changed."""
    place = directory / LOCK
    path = _path(place, _highest(place))
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        holder, beat = _read(file, path), os.fstat(file).st_mtime
        if holder.released:
            return False
        if holder.flock and holder.boot == _boot():
            return not _flock(file, fcntl.LOCK_SH)
        # A single look has no other beat to compare it with, so that two clocks are compared for once.
        return time.time() - beat < PATIENCE_S
    finally:
        os.close(file)


@contextlib.contextmanager
def writing(path: Path, *, wait: bool = False) -> Iterator[None]:
    """Be the only one who writes a file, or what is made in a directory, for the length of the block; no file is left.

    Raises UserError when another process is there, or waits for its end. On file systems without flock it does nothing.
    """
    # NFS gives an exclusive flock only on a file that is open for writing, which a directory cannot be.
    flags = os.O_RDONLY if path.is_dir() else os.O_RDWR | os.O_CREAT
    file = os.open(path, flags | os.O_CLOEXEC, 0o666)
    try:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            raise UserError(f"{path}: another process writes it; wait for its end, or give another --output") from None
        except OSError as error:
            # Without flock two writers go unnoticed here; a run's directory has the numbered locks for that.
            if error.errno not in _NO_FLOCK:
                raise
        yield
    finally:
        os.close(file)


def _acquire(directory: Path, place: Path) -> tuple[int, int]:
    """The number of the lock that is ours now, and its open file, whose flock is ours."""
    while True:
        number = _highest(place)
        if number:
            _wait_for_end(directory, _path(place, number))
        file = _make(place, number + 1)
        if file is None:
            continue  # another one was first: it is asked next
        # Others may have passed us between our look and our link, each with a number of
        # its own: only the highest counts.
        if _highest(place) == number + 1:
            for old in _numbers(place):
                if old <= number:
                    _path(place, old).unlink(missing_ok=True)
            return number + 1, file
        # We were so slow that others have come and gone since: one with a higher number is there.
        _path(place, number + 1).unlink(missing_ok=True)
        os.close(file)


def _make(place: Path, number: int) -> int | None:
    """Make lock `number`, whole and with its flock from the first moment; None when it is there already."""
    path, aside = _path(place, number), place / f"{socket.gethostname()}-{os.getpid()}-{time.monotonic_ns()}.new"
    try:
        file = _write_new(aside)
        try:
            # `link` fails where the name is taken, on NFS too, where O_EXCL was long not to be trusted.
            os.link(aside, path)
        except OSError as error:
            os.close(file)
            if error.errno not in _NO_LINKS:
                raise
            file = _write_new(path)  # one of several is first here too, but others may see it before it is written
    except FileExistsError:
        return None
    finally:
        aside.unlink(missing_ok=True)
    return file


def _write_new(path: Path) -> int:
    """A new file that names this process, open and with its flock; FileExistsError where there is one."""
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
    try:
        holder = Holder(
            host=socket.gethostname(),
            boot=_boot(),
            pid=os.getpid(),
            command=without_credentials(shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]))[:300],
            since=time.strftime("%Y-%m-%d %H:%M:%S %Z"),
            flock=_flock(file, fcntl.LOCK_EX),
        )
        os.write(file, _text(holder))
        # A machine that waits for this lock over the network must find it whole.
        os.fsync(file)
    except BaseException:
        os.close(file)
        raise
    return file


def _wait_for_end(directory: Path, path: Path) -> None:
    """Return when the lock at `path` is no one's any more; Held while it is someone's."""
    last_beat, end = None, time.monotonic() + PATIENCE_S
    while True:
        try:
            file = os.open(path, os.O_RDWR | os.O_CLOEXEC)  # opening makes a network file system look again
        except FileNotFoundError:
            return
        try:
            # By the server's clock, whose changes alone are looked at: the clocks of two machines are never compared.
            holder, beat = _read(file, path), os.fstat(file).st_mtime_ns
            if holder.released:
                return
            # Shared, so that several that wait do not take each other for the holder.
            free = _flock(file, fcntl.LOCK_SH)
            # On this very kernel a lost flock means that the process is gone. From another machine it means nothing:
            # many file systems keep flock local.
            if free and holder.flock and holder.boot == _boot():
                return
        finally:
            os.close(file)
        if (holder.flock and not free) or (last_beat is not None and beat != last_beat):
            raise Held(f"{directory}: {holder} works in this directory; wait for its end, or give another --dir")
        # Told once, since two silent minutes at the start of a command look like a hang.
        if last_beat is None:
            notice = f"{directory}: {holder} had this directory; taken over unless it shows a sign of life in"
            print(f"{notice} {PATIENCE_S:.0f} s", file=sys.stderr)
        if time.monotonic() > end:
            return
        last_beat = beat
        time.sleep(min(1.0, PATIENCE_S / 10))


def _read(file: int, path: Path) -> Holder:
    try:
        # `pread` leaves the position of the open file alone, and a lock is far smaller.
        return Holder(**json.loads(os.pread(file, 2**16, 0)))
    except (ValueError, TypeError):
        raise UserError(f"{path}: damaged lock; remove it if no other process works in this directory") from None


def _flock(file: int, kind: int) -> bool:
    """Whether the flock is ours now; False where another has it, or where the file system knows none."""
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _release(place: Path, number: int) -> None:
    """Say that the directory is free. A lock that was taken over meanwhile is not touched."""
    path = _path(place, number)
    # What cannot be said (a full disk, a file that is gone or damaged) must not hide how the work ended, and is found
    # out by the next one.
    with contextlib.suppress(OSError, ValueError, TypeError):
        holder = Holder(**json.loads(path.read_bytes()))
        aside = path.with_suffix(".released")
        try:
            aside.write_bytes(_text(replace(holder, released=True)))
            if _highest(place) == number:
                aside.replace(path)
        finally:
            aside.unlink(missing_ok=True)


def _text(holder: Holder) -> bytes:
    return (json_text(asdict(holder)) + "\n").encode()


def _path(place: Path, number: int) -> Path:
    return place / f"{number}.json"


def _numbers(place: Path) -> list[int]:
    return [int(path.stem) for path in place.glob("*.json") if path.stem.isdecimal()]


def _highest(place: Path) -> int:
    return max(_numbers(place), default=0)


def _boot() -> str:
    """The same for all processes of one running kernel, in containers too."""
    # A host's name is no proof: containers on one kernel have different ones, and two clusters may share one.
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
