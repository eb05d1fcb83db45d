"""Whether the files of a directory are still those whose hashes were written down, without reading them each time.

What was hashed is remembered in `.verified.json` inside the directory: a file's hash together with its size, times and
inode. A file that shows the same ones again is not read again; a copy is. Knows files; does not know manifests.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, Literal

_RECORD = ".verified.json"  # no part of what is hashed, in no directory
Verification = Literal["once", "always", "never"]
_MODE: ContextVar[Verification] = ContextVar("verification", default="once")
_Stamp = tuple[int, int, int, int]


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
    return hashlib.sha256(json.dumps(data, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def content_files(directory: Path) -> list[Path]:
    """All files below a directory that are its content, sorted: not what is only remembered about them."""
    return sorted(path for path in directory.rglob("*") if path.is_file() and not path.name.startswith(_RECORD))


def hash_files(directory: Path, leave_out: str) -> dict[str, str]:
    """Hex SHA-256 of every file below `directory` but its own `leave_out`, by relative path; remembered there."""
    known = _remembered(directory)
    seen = {}
    for file in content_files(directory):
        name = str(file.relative_to(directory))
        if name != leave_out:
            stamp = _stamp(file)
            seen[name] = (stamp, known.get((name, stamp)) or sha256_file(file))
    _remember(directory, seen)
    return {name: digest for name, (_, digest) in seen.items()}


def first_fault(directory: Path, hashes: Mapping[str, str], leave_out: str) -> tuple[Path, str] | None:
    """The first file that is missing, changed, or not among `hashes`, with what is wrong; None where there is none."""
    if _MODE.get() == "never":
        return None
    known = _remembered(directory)
    found = {str(file.relative_to(directory)): file for file in content_files(directory)}
    found.pop(leave_out, None)
    for name in sorted(hashes.keys() | found.keys()):
        if name not in found:
            return directory / name, "is missing"
        if name not in hashes:
            return directory / name, "was put there later"
    seen, changed = {}, False
    for name, digest in hashes.items():
        stamp = _stamp(found[name])
        if known.get((name, stamp)) != digest:
            if sha256_file(found[name]) != digest:
                return found[name], "was changed or damaged after it was written"
            changed = True
        seen[name] = (stamp, digest)
    if changed:
        _remember(directory, seen)
    return None


def _stamp(file: Path) -> _Stamp:
    """What changes when a file is written to, replaced, or has its time set back."""
    found = file.stat()
    return found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino


def _remembered(directory: Path) -> dict[tuple[str, _Stamp], str]:
    """Hashes by (relative path, stamp), from the records of this directory and of those below it."""
    if _MODE.get() == "always":
        return {}
    known = {}
    for record in directory.rglob(_RECORD):
        place = record.parent.relative_to(directory)
        with contextlib.suppress(
            OSError, ValueError, KeyError, TypeError
        ):  # it only saves time: damaged, it saves none
            read = json.loads(record.read_bytes())
            if read["check"] == hash_json(read["files"]):
                known |= {(str(place / name), tuple(stamp)): digest for name, (stamp, digest) in read["files"].items()}
    return known


def _remember(directory: Path, seen: Mapping[str, tuple[_Stamp, str]]) -> None:
    files = {name: [list(stamp), digest] for name, (stamp, digest) in seen.items()}
    text = json.dumps({"files": files, "check": hash_json(files)})
    aside = directory / f"{_RECORD}.{os.getpid()}"  # several ranks may open one artifact at a time
    with contextlib.suppress(OSError):  # a read-only place is verified anew each time
        aside.write_text(text, encoding="utf-8")
        aside.replace(directory / _RECORD)
