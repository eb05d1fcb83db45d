"""Files that grow and survive a kill at any byte: a ledger says how much of each one counts.

What is appended counts from the next commit on: files are synced first, the ledger's line is written after them, and a
start that finds a ledger cuts every file to what its last line says. Only what came behind that is done again.
"""

from __future__ import annotations

import io
import os
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

from synpro_engine.config.artifact import fsync_path
from synpro_engine.config.errors import UserError
from synpro_engine.config.json_text import json_text
from synpro_engine.config.records import Record, parse_record, whole_lines

_BUFFER = 1 << 20


class _Commit(Record):
    """Bytes that count of each file, by its path below the journal's root, and what its owner noted."""

    sizes: dict[str, int]
    state: dict[str, Any]


def _open_at(path: Path, size: int) -> BinaryIO:
    """Open a file, made where there is none, to append behind its first `size` bytes; what follows these is cut off.

    Unbuffered, so that a write is a write. UserError where the file is shorter.
    """
    # Not "ab": appending ignores the place that was sought, behind which a torn end may lie.
    file = path.open("r+b" if path.exists() else "x+b", buffering=0)
    try:
        if file.seek(0, os.SEEK_END) < size:
            raise UserError(f"{path}: shorter than its ledger says; remove {path.parent} to start anew")
        file.truncate(size)
        file.seek(size)
    except BaseException:
        file.close()
        raise
    return file


class GrowingFile:
    """One file of a journal."""

    def __init__(self, path: Path, size: int) -> None:
        self.path, self.size = path, size
        self._raw = _open_at(path, size)
        self._file = io.BufferedWriter(self._raw, _BUFFER)

    def write(self, data: bytes) -> None:
        """Append; it counts from the next commit on."""
        self._file.write(data)
        self.size += len(data)

    def sync(self) -> None:
        """Push everything to the disk."""
        self._file.flush()
        os.fsync(self._raw.fileno())

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class Journal:
    """Context manager over the growing files of one piece of work below `root`, and its ledger."""

    def __init__(self, ledger: Path, root: Path) -> None:
        self._path, self._root, self._end = ledger, root, 0
        self.state: dict[str, Any] = {}
        """What the last commit noted; empty where there is none."""
        self._sizes: dict[str, int] = {}
        for line in whole_lines(ledger) if ledger.exists() else ():
            try:
                commit = parse_record(line.text, _Commit, line.where)
            except UserError as fault:
                raise UserError(f"{fault}; remove {root} to start anew") from None
            self.state, self._sizes, self._end = commit.state, commit.sizes, line.end
        self._files: list[GrowingFile] = []
        self._held = ExitStack()

    def __enter__(self) -> Self:
        """Nothing is opened before it is asked for."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close all files; what was appended since the last commit does not count."""
        self._held.close()

    def open(self, path: Path) -> GrowingFile:
        """Open a file where the last commit left it."""
        path.parent.mkdir(parents=True, exist_ok=True)
        file = GrowingFile(path, self._sizes.get(self._name(path), 0))
        self._held.callback(file.close)
        self._files.append(file)
        return file

    def commit(self, state: Mapping[str, Any], ends: Mapping[GrowingFile, int] | None = None) -> None:
        """Have everything count that was appended; of the files in `ends`, whose writer is ahead, so much of it."""
        for file in self._files:
            file.sync()
        for folder in {file.path.parent for file in self._files}:
            # New files are entries of their folder, and could be gone with it after a power cut.
            fsync_path(folder)
        sizes = {self._name(file.path): (ends or {}).get(file, file.size) for file in self._files}
        line = (json_text({"sizes": sizes, "state": dict(state)}) + "\n").encode()
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with _open_at(self._path, self._end) as ledger:
            ledger.write(line)
            os.fsync(ledger.fileno())
        fsync_path(self._path.parent)
        self._end += len(line)
        self.state = dict(state)

    def _name(self, path: Path) -> str:
        return path.relative_to(self._root).as_posix()
