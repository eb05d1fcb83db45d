"""Documents to JSON-lines files that appear whole or not at all.

`read_documents` reads them back; extra fields (provenance) pass through untouched.
"""

from __future__ import annotations

import contextlib
import gzip
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

import zstandard

from synpro_engine.config import UserError, json_text, partial_path
from synpro_engine.config.artifact import fsync_path
from synpro_engine.config.journal import GrowingFile
from synpro_engine.data.compressed import line_reader
from synpro_engine.data.documents import Document


def document_line(document: Document, extra: Mapping[str, Any] | None = None) -> bytes:
    """The line of a document, with its newline."""
    named = {} if document.source is None else {"source": document.source}
    record = {"id": document.id, "text": document.text, **named, **(extra or {})}
    assert record["id"] == document.id and record["text"] == document.text, "extra fields shadow the document"
    return (json_text(record, ensure_ascii=False) + "\n").encode()


def written_documents(
    path: Path, behind: int = 0, on_bytes: Callable[[int], object] = lambda count: None
) -> Iterator[tuple[int, Document]]:
    """Yield the documents of a file that the engine wrote, each with its line from 1, behind that of number `behind`.

    Nothing is checked again, and nothing held. on_bytes: see `line_reader`. UserError for a damaged file.
    """
    for number, line in line_reader(path, on_bytes):
        if number > behind:
            fields = json.loads(line)
            yield number, Document(fields["id"], fields["text"], fields.get("source"))


class DocumentFrames:
    """Documents appended to a `.jsonl.zst` that grows, in frames that end where its owner wants to be able to go on."""

    def __init__(self, file: GrowingFile) -> None:
        self._file, self._frame = file, None

    def write(self, documents: Iterable[Document]) -> None:
        """Append documents to the frame in hand."""
        if self._frame is None:
            self._frame = zstandard.ZstdCompressor().compressobj()
        self._file.write(self._frame.compress(b"".join(map(document_line, documents))))

    def end_frame(self) -> None:
        """End the frame in hand; a file without documents gets an empty one."""
        if self._frame is None and not self._file.size:
            self.write(())
        if self._frame is not None:
            self._file.write(self._frame.flush())
            self._frame = None


class DocumentWriter:
    """Context manager that writes documents to `path` (.jsonl, .jsonl.zst or .jsonl.gz, by its suffix).

    Lines go to a file beside it, which is flushed to the disk and renamed on a clean exit. On an exception
    nothing appears and an older file stays as it was.
    """

    def __init__(self, path: Path) -> None:
        if not path.name.endswith((".jsonl", ".jsonl.zst", ".jsonl.gz")):
            raise UserError(f"{path}: documents are written to .jsonl, .jsonl.zst or .jsonl.gz")
        self.path = path
        self.count = 0
        self._partial = partial_path(path)
        self._open_files = contextlib.ExitStack()

    def __enter__(self) -> Self:
        """Open the file aside, making its directory where needed."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._raw = self._open_files.enter_context(self._partial.open("wb"))
        self._stream = self._compressed(self._raw)
        return self

    def _compressed(self, raw: BinaryIO) -> Any:
        if self.path.suffix == ".zst":
            # `closefd=False`: the raw file belongs to the stack, which closes it itself.
            writer = zstandard.ZstdCompressor().stream_writer(raw, closefd=False)
            return self._open_files.enter_context(writer)
        if self.path.suffix == ".gz":
            # No name and no time in the header: the same documents give the same bytes.
            return self._open_files.enter_context(gzip.GzipFile(filename="", mode="wb", fileobj=raw, mtime=0))
        return raw

    def write(self, document: Document, extra: Mapping[str, Any] | None = None) -> None:
        """Append one document, with `extra` JSON fields (their names must not be `id` or `text`)."""
        self.write_line(document_line(document, extra))

    def write_line(self, line: bytes) -> None:
        """Append one document as `document_line` spells it."""
        self._stream.write(line)
        self.count += 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Make the file visible, or remove what was written when the block failed."""
        try:
            # Closed before it is synced: a compressor writes its end only then.
            self._open_files.close()
            if kind is None:
                fsync_path(self._partial)
                os.replace(self._partial, self.path)
                # The rename is an entry of the directory, and is lost with it if the machine
                # stops before that is on the disk.
                fsync_path(self.path.parent)
        finally:
            self._partial.unlink(missing_ok=True)


class NumberedWriter:
    """Context manager that writes JSON lines to `STEM-000000.jsonl.zst` and its successors, each of a bounded size.

    Files follow each other by name as lines do. Each appears whole, as `DocumentWriter`'s; the same lines give the same
    files. Without a line there is an empty one.
    """

    def __init__(self, stem: Path, limit: int) -> None:
        """limit: bytes of a file before compression; a longer line has a file of its own."""
        self._stem, self._limit, self._files = stem, limit, 0

    def __enter__(self) -> Self:
        """Open the first file aside."""
        self._open()
        return self

    def _open(self) -> None:
        # Six digits: readers go by name, and 99,999 files may be too few.
        path = self._stem.with_name(f"{self._stem.name}-{self._files:06d}.jsonl.zst")
        self._file, self._bytes, self._files = DocumentWriter(path).__enter__(), 0, self._files + 1

    def write_line(self, line: bytes) -> None:
        """Append a line, its newline with it."""
        if self._bytes and self._bytes + len(line) > self._limit:
            self._file.__exit__(None, None, None)
            self._open()
        self._file.write_line(line)
        self._bytes += len(line)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Make the last file visible, or remove it when the block failed."""
        self._file.__exit__(kind, error, trace)


def write_documents(path: Path, documents: Iterable[Document]) -> int:
    """Write `documents` to `path` atomically (see DocumentWriter) and return how many there were."""
    with DocumentWriter(path) as writer:
        for document in documents:
            writer.write(document)
    return writer.count
