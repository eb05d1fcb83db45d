"""The records in the files of a corpus: lines of text files, rows of parquet and Arrow files, each with its place.

What a record says is not judged here. A parquet file whose parts contradict each other is damaged.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from synpro_engine.data.arrow_files import count_rows, read_arrow
from synpro_engine.data.compressed import line_reader
from synpro_engine.data.embedded import EMBEDDED_PREFIX, read_embedded
from synpro_engine.data.sources import Source
from synpro_engine.data.table_rows import check_columns, damaged, rows_of_batch, rows_together
from synpro_engine.data.walking import CorpusFile

if TYPE_CHECKING:  # slow to import: only a corpus of parquet files pays for it
    import pyarrow
    import pyarrow.parquet

_KIND = "parquet"
_BUFFER = 1 << 23
"""Bytes of a column that are read at once; of a file in a store one request asks for so many."""


class Record(NamedTuple):
    """One record and where it stands: `line` is the line or the row, from 1."""

    file: CorpusFile
    line: int
    content: bytes | dict[str, Any]
    """A line as it is, or the fields of a row."""


@dataclass(slots=True)
class Place:
    """How far a source was read: the last record, by its file's number from 0 and its line or row from 1."""

    file: int = 0
    line: int = 0


def read_records(
    source: Source,
    fields: Sequence[str],
    *,
    may_nest: Container[str] = (),
    place: Place | None = None,
    on_bytes: Callable[[int], object] = lambda count: None,
) -> Iterator[Record]:
    """Yield the records of `source` in reading order; lines of ASCII white space are none.

    Of rows only `fields` (dotted paths) are read, and only those in `may_nest` may hold lists or records. Raises
    UserError for a file that is damaged as a whole.

    place: where to go on, behind that record; it is kept up to date. on_bytes: told how many bytes of the files were
    read since it was told last; in all, of what is passed over too, it is their size.
    """
    place = place or Place()
    behind = Place(place.file, place.line)
    for number, file in enumerate(source.files):
        if number < behind.file:
            on_bytes(file.stat().st_size)
            continue
        for record in _read_file(source, file, fields, may_nest, on_bytes):
            if (number, record.line) > (behind.file, behind.line):
                place.file, place.line = number, record.line
                yield record


def _read_file(
    source: Source,
    file: CorpusFile,
    fields: Sequence[str],
    may_nest: Container[str],
    on_bytes: Callable[[int], object],
) -> Iterator[Record]:
    if source.name.startswith(EMBEDDED_PREFIX):
        assert isinstance(file, Path)
        yield from (Record(file, line, fields) for line, fields in read_embedded(source.name, file))
        on_bytes(file.stat().st_size)
    elif (read_rows := _TABLES.get(file.suffix.lower())) is not None:
        rows = enumerate(read_rows(file, fields, may_nest, on_bytes), 1)
        yield from (Record(file, row, content) for row, content in rows)
    else:
        yield from (Record(file, number, raw) for number, raw in line_reader(file, on_bytes) if raw.strip())


def count_records(source: Source) -> int:
    """How many records `read_records` yields: a quick pass over the files, parsing next to nothing."""
    if source.name.startswith(EMBEDDED_PREFIX):
        return sum(1 for _ in read_records(source, ()))
    return sum(map(_count, source.files))


def _count(file: CorpusFile) -> int:
    if file.suffix.lower() == ".arrow":
        return count_rows(file)
    if file.suffix.lower() != ".parquet":
        return sum(1 for _, raw in line_reader(file) if raw.strip())
    with _opened(file, lambda: 0) as opened:
        return opened.metadata.num_rows


def _read_rows(
    file: CorpusFile, fields: Sequence[str], may_nest: Container[str], on_bytes: Callable[[int], object]
) -> Iterator[dict[str, Any] | bytes]:
    """Yield row by row what stands under `fields` of a parquet file; a row of text that is not UTF-8 as its bytes.

    A field that the file does not have is absent from the rows, where the names of its columns then stand without
    values. Raises UserError for a damaged file, for two columns of a name that is asked for (nothing says which one is
    meant), and for a field that is no plain column and none of `may_nest`.
    """
    row = told = 0
    with _opened(file, lambda: row) as opened:
        size = file.stat().st_size
        columns = _columns(file, opened, fields, may_nest)
        # Names alone, for a message that says what there is instead of a field that is missing.
        others = {} if len(columns) == len(fields) else dict.fromkeys(opened.schema_arrow.names)
        for batch in _batches(opened, columns):
            for content in rows_of_batch(file, batch):
                row += 1
                yield content if isinstance(content, bytes) else {**others, **content}
            # By rows: where in the file their columns lie says little.
            share = size * row // max(opened.metadata.num_rows, row)
            on_bytes(share - told)
            told = share
        if row != opened.metadata.num_rows:
            raise damaged(file, row + 1, f"{row} rows, but its footer says {opened.metadata.num_rows}", _KIND)
        on_bytes(size - told)


def _batches(opened: pyarrow.parquet.ParquetFile, columns: Sequence[str]) -> Iterator[pyarrow.RecordBatch]:
    """Rows by megabytes and not by groups, which may be a gigabyte; at the least a page of each column is held."""
    for group in range(opened.num_row_groups):
        told = opened.metadata.row_group(group)
        together = rows_together(told.num_rows, told.total_byte_size)
        yield from opened.iter_batches(batch_size=together, row_groups=[group], columns=columns)


@contextmanager
def _opened(file: CorpusFile, rows_read: Any) -> Iterator[pyarrow.parquet.ParquetFile]:
    import pyarrow
    import pyarrow.parquet

    try:
        place = file if isinstance(file, Path) else file.open_ranges()
        with pyarrow.parquet.ParquetFile(
            place,
            # Without a buffer a column of a row group would be one read, and held whole; fetched ahead, as by default,
            # it is that in spite of a buffer, and all that was read stays until the file is closed.
            buffer_size=_BUFFER,
            pre_buffer=False,
            # Off by default: a flipped bit in a page would be read as other text.
            page_checksum_verification=True,
        ) as opened:
            metadata = opened.metadata
            # A damaged footer can promise fewer rows than there are, which would look like a smaller corpus.
            counted = sum(metadata.row_group(group).num_rows for group in range(metadata.num_row_groups))
            if counted != metadata.num_rows:
                told = f"row groups of {counted} rows in all, but its footer says {metadata.num_rows}"
                raise damaged(file, 1, told, _KIND)
            yield opened
    # A footer that is no text where text belongs ends in any of these.
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError, TypeError) as error:
        raise damaged(file, rows_read() + 1, str(error), _KIND) from None


def _columns(
    file: CorpusFile, opened: pyarrow.parquet.ParquetFile, fields: Sequence[str], may_nest: Container[str]
) -> list[str]:
    """Which of `fields` the file has; of a nested column only what is asked for is read."""
    there = [opened.schema.column(at).path for at in range(len(opened.schema))]
    # A list column appears as `field.list.element`: asked for by its name it would be read, and be no text.
    nested = [f for f in fields if f not in there and any(path.startswith(f"{f}.") for path in there)]
    check_columns(file, there, nested, fields, may_nest)
    return [field for field in fields if field in there or field in nested]


_TABLES = {".parquet": _read_rows, ".arrow": read_arrow}
