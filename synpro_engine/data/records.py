"""What stands in the files of a corpus, one record at a time, each with its place, before anyone judges it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from synpro_engine.config import UserError
from synpro_engine.data.compressed import line_reader
from synpro_engine.data.parquet import count_rows, read_rows
from synpro_engine.data.sources import EMBEDDED_PREFIX, Source


class Record(NamedTuple):
    """One record and where it stands: `line` is the line or the row, from 1."""

    file: Path
    line: int
    content: bytes | dict[str, Any]
    """A line as it is, or the fields of a row."""


def read_records(source: Source, fields: Sequence[str]) -> Iterator[Record]:
    """Yield the records of `source` in reading order; lines of ASCII white space are none.

    Of rows only `fields` (dotted paths) are read. Raises UserError for a file that is damaged as a whole.
    """
    for file in source.files:
        if source.name.startswith(EMBEDDED_PREFIX):
            name = f"{source.name.removeprefix(EMBEDDED_PREFIX)}/{file.stem}"
            yield Record(file, 1, {"id": name, "text": _read_text(file)})
        elif _is_parquet(file):
            yield from (Record(file, row, content) for row, content in enumerate(read_rows(file, fields), 1))
        else:
            yield from (Record(file, number, raw) for number, raw in line_reader(file) if raw.strip())


def count_records(source: Source) -> int:
    """How many records `read_records` yields: a quick pass over the files, parsing nothing."""
    return len(source.files) if source.name.startswith(EMBEDDED_PREFIX) else sum(map(_count, source.files))


def _count(file: Path) -> int:
    return count_rows(file) if _is_parquet(file) else sum(1 for _, raw in line_reader(file) if raw.strip())


def _is_parquet(file: Path) -> bool:
    return file.suffix.lower() == ".parquet"


def _read_text(file: Path) -> str:
    try:
        return file.read_bytes().decode()
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise UserError(f"{file}: not UTF-8") from None
