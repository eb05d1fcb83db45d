"""Documents as a user gives them to be scored: how many there are, and going on behind a bad one.

Knows the formats only as `data.documents` reads them, and judges a document by the same rules.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from synpro_engine.config import UserError
from synpro_engine.data import Document, read_documents
from synpro_engine.data.compressed import line_reader
from synpro_engine.data.documents import _decode, _document, _files, _parse

_PARQUET_ROWS = 1024
_Judge = Callable[[], Document]


def input_documents(source: str, on_bad: Callable[[str], None] | None = None) -> Iterator[Document]:
    """The documents of `source`, in file order; see `read_documents` for what may be given.

    Memory grows by some hundred bytes a document, to notice an id that comes again. A bad document raises UserError,
    naming file and line; with `on_bad` it is left out, and `on_bad` told so. A file that is damaged as a whole still
    raises, and so does a source without a single good document.
    """
    if on_bad is None or source.startswith("embedded:"):
        yield from read_documents(source)
        return
    seen: set[bytes] = set()
    for where, judge in _judges(source):
        try:
            document = judge()
        except UserError as fault:
            on_bad(str(fault))
            continue
        digest = hashlib.blake2b(document.id.encode(), digest_size=16).digest()
        if digest in seen:
            on_bad(f"{where}: id {document.id!r} was used before")
            continue
        seen.add(digest)
        yield document
    if not seen:
        raise UserError(f"{source}: no document is left")


def count_documents(source: str) -> int:
    """Lines or rows that hold a document, good or bad: a quick pass over the files, parsing nothing."""
    if source.startswith("embedded:"):
        return sum(1 for _ in read_documents(source))
    return sum(map(_count, _source_files(source)))


def _count(file: Path) -> int:
    if file.suffix != ".parquet":
        return sum(1 for _, raw in line_reader(file) if raw.strip())
    import pyarrow
    import pyarrow.parquet

    try:
        return pyarrow.parquet.read_metadata(file).num_rows
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"{file}:1: damaged or truncated parquet ({str(error).splitlines()[0]})") from None


def _source_files(source: str) -> list[Path]:
    path = Path(source)
    if path.is_dir():
        return _files(path)
    if not path.exists():
        next(read_documents(source))  # says what is wrong
    return [path]


def _judges(source: str) -> Iterator[tuple[str, _Judge]]:
    """Where each document stands, and how to get it or learn what is wrong with it."""
    for file in _source_files(source):
        if file.suffix == ".parquet":
            yield from _rows(file)
            continue
        for number, raw in line_reader(file):
            if raw.strip():
                where = f"{file}:{number}"
                yield where, partial(_of_line, raw, where, first=number == 1)


def _of_line(raw: bytes, where: str, *, first: bool) -> Document:
    line = _decode(raw, where).strip()
    return _document(_parse(line.removeprefix("\ufeff") if first else line, where), where)


def _rows(file: Path) -> Iterator[tuple[str, _Judge]]:
    import pyarrow
    import pyarrow.parquet

    row = 0
    try:
        with pyarrow.parquet.ParquetFile(file) as opened:
            columns = [name for name in ("id", "text") if name in opened.schema_arrow.names]
            for batch in opened.iter_batches(batch_size=_PARQUET_ROWS, columns=columns):
                for record in batch.to_pylist():
                    row += 1
                    yield f"{file}:{row}", partial(_document, record, f"{file}:{row}")
    except UnicodeDecodeError:
        raise UserError(f"{file}: not UTF-8 (in the {_PARQUET_ROWS} rows behind row {row})") from None
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"{file}:{row + 1}: damaged or truncated parquet ({str(error).splitlines()[0]})") from None
