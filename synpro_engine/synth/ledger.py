"""Append-only records that survive a kill at any byte: compressed frames and a ledger that says which count.

A unit of work is on disk when its line is in the ledger: the frame is written and synced first, the line after it, so
whatever a kill leaves behind the last line is cut off at the next start. Each writer (data-parallel rank) has its own
pair of files.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

import zstandard
from pydantic import Field

from synpro_engine.config import Record, UserError, json_text, parse_record, whole_lines
from synpro_engine.config.artifact import fsync_path
from synpro_engine.config.journal import open_at
from synpro_engine.config.records import WholeLine


class Commit(Record):
    """One unit's frame: bytes `offset` to `offset + size` of `part`, with their SHA-256 (hex)."""

    unit: int
    part: str = Field(pattern=r"^part-[0-9]+\.zst$")
    offset: int = Field(ge=0)
    size: int = Field(ge=0)
    sha256: str


def _commits(path: Path) -> Iterator[tuple[WholeLine, Commit]]:
    """The units of one ledger, each with the line that it stands on; UserError names a damaged one."""
    for line in whole_lines(path):
        try:
            yield line, parse_record(line.text, Commit, line.where)
        except UserError as fault:
            raise UserError(f"{fault}; remove {path.parent} to start anew") from None


def read_commits(directory: Path) -> dict[int, Commit]:
    """All units on disk, of all writers. UserError when a ledger is damaged, or two writers hold one unit."""
    commits: dict[int, Commit] = {}
    for path in sorted(directory.glob("part-*.ledger")):
        for line, commit in _commits(path):
            if commit.unit in commits:
                raise UserError(f"{line.where}: unit {commit.unit} is there twice; remove {directory}")
            commits[commit.unit] = commit
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
    """Context manager that appends units to one writer's files, after cutting off what a kill left behind."""

    def __init__(self, directory: Path, rank: int) -> None:
        self._ledger_path = directory / f"part-{rank:05d}.ledger"
        self._part_path = self._ledger_path.with_suffix(".zst")

    def __enter__(self) -> Self:
        """Open both files at the end of the last unit that counts."""
        part_end = ledger_end = 0
        if self._ledger_path.exists():
            for line, commit in _commits(self._ledger_path):
                # The highest end and not the last: what lies behind it belongs to no line, and
                # was written when the kill came.
                part_end, ledger_end = max(part_end, commit.offset + commit.size), line.end
        self._part = open_at(self._part_path, part_end)
        self._ledger = open_at(self._ledger_path, ledger_end)
        # New files are entries of the directory: synced files could be gone with it after a power cut.
        fsync_path(self._part_path.parent)
        return self

    def append(self, unit: int, records: Sequence[Mapping[str, Any]]) -> None:
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
