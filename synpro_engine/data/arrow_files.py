"""The rows of `.arrow` files: Arrow's IPC streams, as Hugging Face's `datasets` writes them, and IPC files.

Held is one record batch, as its writer cut them: `datasets` takes a thousand rows, or fewer large ones.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from synpro_engine.data.table_rows import check_columns, damaged, rows_of_batch
from synpro_engine.storage import RemoteFile

if TYPE_CHECKING:  # slow to import
    import pyarrow
    import pyarrow.ipc

_MAGIC = b"ARROW1"  # of an IPC file; a stream begins with a message
_END = b"\xff\xff\xff\xff\0\0\0\0"
"""Of a whole stream; each of its messages begins with the first half. Before 2019 both were without it."""
_KIND = "Arrow file"


def read_arrow(
    file: Path | RemoteFile,
    fields: Sequence[str],
    may_nest: Container[str],
    on_bytes: Callable[[int], object] = lambda count: None,
) -> Iterator[dict[str, Any] | bytes]:
    """Yield row by row what stands under `fields` (dotted paths), as `rows_of_batch` has it.

    A field that the file does not have is absent from the rows, where the names of its columns then stand without
    values. Raises UserError, which names file and row, for a damaged file or one that is cut short, and as
    `check_columns`. on_bytes: told how much of the file was read since it was told last.
    """
    row = told = 0
    with _opened(file, lambda: row) as (source, is_stream):
        schema, _ = _reader(source, is_stream, None)
        names = schema.names
        check_columns(file, _paths(schema), [f for f in fields if _is_nested(schema, f)], fields, may_nest)
        columns = [at for at, name in enumerate(names) if any(f == name or f.startswith(f"{name}.") for f in fields)]
        # Names alone, for a message that says what there is instead of a field that is missing.
        others = dict.fromkeys(names)
        source.seek(0)
        # Without a column that is asked for the first one is read, whose rows count.
        _, batches = _reader(source, is_stream, columns or [0])
        for batch in batches:
            _validate(batch)
            for content in rows_of_batch(file, batch):
                row += 1
                yield content if isinstance(content, bytes) else {**others, **content}
            place = source.tell()
            on_bytes(max(0, place - told))
            told = max(told, place)
        on_bytes(file.stat().st_size - told)


def count_rows(file: Path | RemoteFile) -> int:
    """How many rows there are; UserError as `read_arrow`."""
    with _opened(file, lambda: 0) as (source, is_stream):
        return sum(batch.num_rows for batch in _reader(source, is_stream, None)[1])


@contextmanager
def _opened(file: Path | RemoteFile, rows_read: Callable[[], int]) -> Iterator[tuple[BinaryIO, bool]]:
    import pyarrow

    try:
        with file.open_ranges() if isinstance(file, RemoteFile) else file.open("rb") as source:
            head = source.read(len(_MAGIC))
            is_stream, end = head != _MAGIC, _END if head.startswith(_END[:4]) else _END[4:]
            source.seek(max(0, file.stat().st_size - len(_END)))
            # The reader takes the end of a file between two batches for that of the stream.
            if is_stream and not source.read().endswith(end):
                raise damaged(file, 1, "the end of its stream is missing", _KIND)
            source.seek(0)
            yield source, is_stream
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError, TypeError) as error:
        raise damaged(file, rows_read() + 1, str(error), _KIND) from None
    except MemoryError:  # of a length in a damaged message, which is asked for at once
        raise damaged(file, rows_read() + 1, "a batch asks for more memory than there is", _KIND) from None


def _reader(
    source: BinaryIO, is_stream: bool, columns: Sequence[int] | None
) -> tuple[pyarrow.Schema, Iterator[pyarrow.RecordBatch]]:
    """The schema and the batches; of top-level `columns` alone where given."""
    import pyarrow.ipc

    options = pyarrow.ipc.IpcReadOptions(included_fields=None if columns is None else list(columns))
    # Wrapped, so that closing the reader leaves the file open to tell its place.
    if is_stream:
        stream = pyarrow.ipc.open_stream(pyarrow.PythonFile(source, mode="r"), options=options)
        return stream.schema, iter(stream)
    opened = pyarrow.ipc.open_file(pyarrow.PythonFile(source, mode="r"), options=options)
    return opened.schema, (opened.get_batch(at) for at in range(opened.num_record_batches))


def _validate(batch: pyarrow.RecordBatch) -> None:
    """Raise for offsets and indices that lead outside of their column, which would be read as other memory."""
    for column in batch.columns:
        # Text as bytes: a row that is not UTF-8 is told by its own line, as in other files, and must hide nothing here.
        kind = _as_bytes(column.type)
        (column if kind == column.type else column.view(kind)).validate(full=True)


def _as_bytes(kind: pyarrow.DataType) -> pyarrow.DataType:
    """A type with bytes wherever it has text."""
    import pyarrow
    from pyarrow import types

    text = {pyarrow.string(): pyarrow.binary(), pyarrow.large_string(): pyarrow.large_binary()}
    text[pyarrow.string_view()] = pyarrow.binary_view()
    if types.is_struct(kind):
        return pyarrow.struct([field.with_type(_as_bytes(field.type)) for field in kind])
    if types.is_dictionary(kind):
        return pyarrow.dictionary(kind.index_type, _as_bytes(kind.value_type), kind.ordered)
    if types.is_list(kind) or types.is_large_list(kind):
        make = pyarrow.list_ if types.is_list(kind) else pyarrow.large_list
        return make(kind.value_field.with_type(_as_bytes(kind.value_type)))
    return text.get(kind, kind)


def _paths(schema: pyarrow.Schema) -> list[str]:
    """Names of columns, and dotted paths to the fields of records below them."""
    return [path for field in schema for path in _below(field, "")]


def _below(field: pyarrow.Field, before: str) -> Iterator[str]:
    import pyarrow

    path = f"{before}{field.name}"
    yield path
    if pyarrow.types.is_struct(field.type):
        for inner in field.type:
            yield from _below(inner, f"{path}.")


def _is_nested(schema: pyarrow.Schema, path: str) -> bool:
    import pyarrow

    fields = list(schema)
    for field in fields:
        if path == field.name:
            kind = field.type.value_type if pyarrow.types.is_dictionary(field.type) else field.type
            return pyarrow.types.is_nested(kind)
        if path.startswith(f"{field.name}.") and pyarrow.types.is_struct(field.type):
            return _is_nested(pyarrow.schema(list(field.type)), path.removeprefix(f"{field.name}."))
    return False
