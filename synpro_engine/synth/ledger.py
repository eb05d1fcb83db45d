"""Append-only records that survive a kill at any byte: compressed frames and a ledger that says which count.

A unit of work is on disk when its line is in the ledger: the frame is written and synced first, the line after it, so
whatever a kill leaves behind the last whole line counts for nothing. Each writer has a pair of files of its own.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

import zstandard
from pydantic import Field

from synpro_engine.config import Record, UserError, json_text, parse_record, whole_lines
from synpro_engine.config.artifact import fsync_path


class Counts(Record):
    """What a unit came to, for whoever asks how far the work is."""

    prompts: int
    accepted: int
    refused: dict[str, int]
    """Completions by reason."""
    completion_tokens: int
    text_tokens: int
    """Of the accepted texts."""
    seconds: float
    ended: float
    """Since the epoch, by the writer's clock."""


def counts_of(records: Sequence[Mapping[str, Any]], prompts: int, seconds: float) -> Counts:
    """Of the records of a unit that so many prompts took so many seconds to answer."""
    refused = Counter(record["reason"] for record in records if record["reason"] is not None)
    return Counts(
        prompts=prompts,
        accepted=len(records) - refused.total(),
        refused=dict(refused),
        completion_tokens=sum(record["completion_tokens"] for record in records),
        text_tokens=sum(record["text_tokens"] for record in records if record["reason"] is None),
        seconds=round(seconds, 3),
        ended=time.time(),
    )


class Commit(Record):
    """One unit's frame: bytes `offset` to `offset + size` of `part`, with their SHA-256 (hex)."""

    unit: int
    part: str = Field(pattern=r"^part-[0-9a-z]+\.zst$")
    offset: int = Field(ge=0)
    size: int = Field(ge=0)
    sha256: str
    counts: Counts


class Ledgers:
    """All writers' ledgers of a directory, read on from where the last look ended: each line is parsed once."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._ends: dict[Path, int] = {}

    @property
    def count(self) -> int:
        """Ledgers seen so far."""
        return len(self._ends)

    def fresh(self) -> Iterator[Commit]:
        """The units that were put on disk since the last call; one may come twice, from two writers.

        UserError names a damaged line.
        """
        for path in sorted(self.directory.glob("part-*.ledger")):
            for line in whole_lines(path, start=self._ends.get(path, 0)):
                self._ends[path] = line.end
                try:
                    yield parse_record(line.text, Commit, line.where)
                except UserError as fault:
                    raise UserError(f"{fault}; remove {self.directory} to start anew") from None


def read_commits(directory: Path) -> dict[int, Commit]:
    """All units on disk, each as one of its writers put it there. UserError when a ledger is damaged."""
    commits: dict[int, Commit] = {}
    for commit in Ledgers(directory).fresh():
        # Twice where a lease was taken over from a writer that was only slow: both have written the same.
        commits.setdefault(commit.unit, commit)
    return commits


def read_frame(directory: Path, commit: Commit) -> Iterator[dict[str, Any]]:
    """The records of one unit, in order. UserError when the bytes are not those that were written."""
    path = directory / commit.part
    if not path.is_file():
        raise UserError(f"{path}: missing; remove {directory} to start anew")
    with path.open("rb") as file:
        file.seek(commit.offset)
        frame = file.read(commit.size)
    # zstd's own frames carry no checksum by default.
    if hashlib.sha256(frame).hexdigest() != commit.sha256:
        raise UserError(f"{path}: damaged at byte {commit.offset}; remove {directory} to start anew")
    for line in zstandard.ZstdDecompressor().decompress(frame).decode("utf-8").splitlines():
        yield json.loads(line)


class PartWriter:
    """Context manager that appends units to one writer's files, which are its own from its start to its end."""

    def __init__(self, directory: Path, writer: str) -> None:
        """`writer`: digits and small letters, a name that no writer had before: what those left is not touched."""
        self._ledger_path = directory / f"part-{writer}.ledger"
        self._part_path = self._ledger_path.with_suffix(".zst")

    def __enter__(self) -> Self:
        """Open both files."""
        # Unbuffered, so that a write is a write.
        self._part, self._ledger = (path.open("xb", buffering=0) for path in (self._part_path, self._ledger_path))
        # New files are entries of the directory: synced files could be gone with it after a power cut.
        fsync_path(self._part_path.parent)
        return self

    def append(self, unit: int, records: Sequence[Mapping[str, Any]], counts: Counts) -> None:
        """Put one unit on disk. Returns after it is durable; UserError when the disk is full (the rest stays)."""
        # ASCII keeps every record on one line: JSON leaves U+2028 and its like as they are otherwise.
        text = "".join(json_text(record, ensure_ascii=True) + "\n" for record in records)
        frame = zstandard.ZstdCompressor().compress(text.encode())
        commit = Commit(
            unit=unit,
            part=self._part_path.name,
            # Where this process put it. Each writer has its own file, so nobody else moves the end.
            offset=self._part.tell(),
            size=len(frame),
            sha256=hashlib.sha256(frame).hexdigest(),
            counts=counts,
        )
        try:
            # In this order: a line in the ledger must never speak of bytes that are not on the disk.
            _write_through(self._part, frame)
            _write_through(self._ledger, (json_text(commit.model_dump()) + "\n").encode())
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            place = self._part_path.parent
            raise UserError(f"{place}: no space left; free some and start again, what is written stays") from None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close both files; everything that counts is already on disk."""
        self._part.close()
        self._ledger.close()


def _write_through(file: BinaryIO, data: bytes) -> None:
    view = memoryview(data)
    while view:  # an unbuffered write may take only a part
        view = view[file.write(view) :]
    os.fsync(file.fileno())
