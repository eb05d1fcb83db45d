"""Rows of tables as records: what a batch of columns holds, whatever kind of file it was read from."""

from __future__ import annotations

from collections.abc import Container, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from synpro_engine.config import UserError

if TYPE_CHECKING:  # slow to import: only a corpus of tables pays for it
    import pyarrow

_BATCH_ROWS, _BATCH_BYTES = 1024, 1 << 22


def rows_together(rows: int, size: int) -> int:
    """How many of so many rows, of `size` bytes in all, are held at once: some megabytes of them, and at least one."""
    return max(1, min(_BATCH_ROWS, _BATCH_BYTES * rows // max(1, size)))


def rows_of_batch(file: object, batch: pyarrow.RecordBatch) -> Iterator[dict[str, Any] | bytes]:
    """The fields of each row; of a row with text that is not UTF-8 that text's bytes.

    UserError, which names the file, for a column of a type that Python has no value for.
    """
    together = rows_together(batch.num_rows, batch.nbytes)
    for first in range(0, batch.num_rows, together):
        yield from _converted(file, batch.slice(first, together))


def _converted(file: object, batch: pyarrow.RecordBatch) -> Iterator[dict[str, Any] | bytes]:
    try:
        yield from batch.to_pylist()
    except UnicodeDecodeError:  # one of them; found one by one
        for row in range(batch.num_rows):
            try:
                yield batch.slice(row, 1).to_pylist()[0]
            except UnicodeDecodeError as error:
                # The row's raw bytes, so that the caller names it as it names a line that is not UTF-8.
                yield error.object
    except (ValueError, OverflowError) as error:  # times that Python has no type for
        types = ", ".join(f"`{column.name}` of type {column.type}" for column in batch.schema)
        raise UserError(f"{file}: neither text nor ids can be read from {types} ({error})") from None


def check_columns(
    file: object, there: Sequence[str], nested: Container[str], fields: Sequence[str], may_nest: Container[str]
) -> None:
    """UserError for a field that two columns are called, or that holds lists or records and is none of `may_nest`.

    there: the paths of all columns. nested: those of `fields` that hold lists or records.
    """
    for field in fields:
        if there.count(field) > 1:
            raise UserError(f"{file}: {there.count(field)} columns are called `{field}`; which one is meant?")
        if field in nested and field not in may_nest:
            raise UserError(f"{file}: `{field}` holds lists or records; text and ids are strings or integers")


def damaged(file: object, row: int, why: str, kind: str) -> UserError:
    """A file of a kind that cannot be read on from a row."""
    return UserError(f"{file}:{row}: damaged or truncated {kind} ({why.splitlines()[0] if why else 'no reason given'})")
