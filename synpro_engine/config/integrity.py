"""Whether the files of a directory are still those whose hashes were written down, without reading them each time.

What was hashed is remembered in `.verified.json` inside the directory: a file's hash together with its size, times and
inode. A file that shows the same ones again is not read again; a copy is.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, Literal, NoReturn

from synpro_engine.config.errors import UserError
from synpro_engine.config.json_text import json_text

_RECORD = ".verified.json"  # no part of what is hashed, in no directory
_TICK_S = 0.02  # kernels stamp files by a clock that ticks every 1 to 10 ms
Verification = Literal["once", "always", "never"]
_MODE: ContextVar[Verification] = ContextVar("verification", default="once")
Stamp = tuple[int, int, int, int]
"""Size, times of change in ns, inode: what changes when a file is written to, replaced, or has its time set back."""


@contextmanager
def verification(mode: Verification) -> Iterator[None]:
    """How artifacts are verified in this block: `once` for each change of a file, at every opening, or never."""
    token = _MODE.set(mode)
    try:
        yield
    finally:
        _MODE.reset(token)


def sha256_file(path: Path) -> str:
    """Hex SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_json(data: Any) -> str:
    """Hex SHA-256 of plain data in canonical JSON."""
    # Sorted, for two dicts with the same content are the same settings, whatever order they were filled in.
    return hashlib.sha256(json_text(data, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def content_files(directory: Path) -> list[Path]:
    """All files below a directory that are its content, sorted: not what is only remembered about them."""
    # By prefix, since each process writes the record beside itself first (`_remember`), and one may be left by a kill.
    return sorted(path for path in directory.rglob("*") if path.is_file() and not path.name.startswith(_RECORD))


def hash_files(directory: Path, leave_out: str, known: Mapping[str, str] | None = None) -> dict[str, str]:
    """Hex SHA-256 of every file below `directory` but its own `leave_out`, by relative path; remembered there.

    known: hashes of files that were just written.
    """
    remembered, known, files = _remembered(directory), known or {}, _content(directory, leave_out)
    # Taken before the hashing: a file that changes while it is read then shows another stamp at the next look.
    stamps = _stamps(files)
    seen = {
        name: (stamp, known.get(name) or remembered.get((name, stamp)) or sha256_file(files[name]))
        for name, stamp in stamps.items()
    }
    _remember(directory, seen)
    return {name: digest for name, (_, digest) in seen.items()}


def unhashed_files(directory: Path, leave_out: str) -> dict[str, Stamp]:
    """Files below `directory`, but its own `leave_out`, that `hash_files` would have to read, by relative path."""
    remembered = _remembered(directory)
    stamps = _stamps(_content(directory, leave_out))
    return {name: stamp for name, stamp in stamps.items() if (name, stamp) not in remembered}


def stale_files(directory: Path, hashes: Mapping[str, str], leave_out: str) -> dict[str, Stamp]:
    """Which of the files that have these `hashes` must be read before they are trusted, by relative path.

    Raises UserError, which names the file, for one that is missing or not among `hashes`.
    """
    if _MODE.get() == "never":
        return {}
    files = _content(directory, leave_out)
    # Additions count too: a file that somebody put into a checkpoint would be read as a part of it.
    for name in sorted(hashes.keys() ^ files.keys()):
        _refuse(directory, name, "is missing" if name in hashes else "was put there later")
    remembered = _remembered(directory)
    stamps = _stamps(files)
    return {name: stamp for name, stamp in stamps.items() if remembered.get((name, stamp)) != hashes[name]}


def confirm(directory: Path, hashes: Mapping[str, str], stale: Mapping[str, Stamp], read: Mapping[str, str]) -> None:
    """Hold what the stale files hash to now (`read`) against `hashes`, and remember it for the next opening.

    Raises UserError, which names the file, for one that differs.
    """
    for name in sorted(stale):
        if read[name] != hashes[name]:
            _refuse(directory, name, "was changed or damaged after it was written")
    # Nothing to write where nothing was read, so that opening never touches a directory that is as it was.
    if stale:
        remember(directory, stale, read)


def remember(directory: Path, stamps: Mapping[str, Stamp], hashes: Mapping[str, str]) -> None:
    """Note the hashes that files had at these stamps beside what is remembered of others."""
    before = {name: (stamp, digest) for (name, stamp), digest in _remembered(directory).items()}
    _remember(directory, before | {name: (stamp, hashes[name]) for name, stamp in stamps.items()})


def _refuse(directory: Path, name: str, what: str) -> NoReturn:
    raise UserError(f"{directory / name}: {what}; {directory} is not what it was (remove it, and it can be made again)")


def _content(directory: Path, leave_out: str) -> dict[str, Path]:
    named = {str(path.relative_to(directory)): path for path in content_files(directory)}
    return {name: path for name, path in named.items() if name != leave_out}


def _stamps(files: Mapping[str, Path]) -> dict[str, Stamp]:
    """Returns when the clock of the file system has gone on, so that a change after that shows in a stamp."""
    status = {name: file.stat() for name, file in files.items()}
    # A write within the clock's tick leaves size and times as they are; waiting out one tick closes that gap.
    if time.time_ns() - max((s.st_ctime_ns for s in status.values()), default=0) < _TICK_S * 1e9:
        time.sleep(_TICK_S)
    return {name: (s.st_size, s.st_mtime_ns, s.st_ctime_ns, s.st_ino) for name, s in status.items()}


def _remembered(directory: Path) -> dict[tuple[str, Stamp], str]:
    """Hashes by (relative path, stamp), from the records of this directory, of those below it and of what it is in."""
    if _MODE.get() == "always":
        return {}
    start, known = directory.absolute(), {}
    # From above too: a stage's record also covers the checkpoints in it, so each is hashed
    # once and not again on its own.
    for record in (*start.rglob(_RECORD), *(place / _RECORD for place in start.parents[:2])):
        # It only saves time: damaged, it saves none.
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError, RecursionError):
            read = json.loads(record.read_bytes())
            # A record that a flipped bit changed could vouch for a damaged file.
            if read["check"] != hash_json(read["files"]):
                continue
            for name, (stamp, digest) in read["files"].items():
                if (file := record.parent / name).is_relative_to(start):
                    known[str(file.relative_to(start)), tuple(stamp)] = digest
    return known


def _remember(directory: Path, seen: Mapping[str, tuple[Stamp, str]]) -> None:
    files = {name: [list(stamp), digest] for name, (stamp, digest) in seen.items()}
    text = json_text({"files": files, "check": hash_json(files)})
    aside = directory / f"{_RECORD}.{os.getpid()}"  # several ranks may open one artifact at a time
    with contextlib.suppress(OSError):  # a read-only place is verified anew each time
        aside.write_text(text, encoding="utf-8")
        aside.replace(directory / _RECORD)
