"""Documents from their source into the splits of the `tokenize` artifact, one at a time, with an account of them.

Knows records, splits and what was left out; knows no tokens. Held in memory are 24 bytes a document at the most for its
id, and as many for its text where duplicates are looked for.
"""

from __future__ import annotations

import contextlib
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from synpro_engine.config import Config
from synpro_engine.data import (
    BadDocument,
    Document,
    DocumentWriter,
    ReadConfig,
    SeenKeys,
    Source,
    Split,
    SplitConfig,
    chunk_documents,
    read_documents,
    split_of,
    text_key,
)

SPLITS: tuple[Split, ...] = ("train", "reference", "validation")
LEFT_OUT = "left_out.jsonl"
DUPLICATE = "repeated text"


class CorpusAccount(Config):
    """What became of the records of a source."""

    documents: dict[Split, int]
    """Whole documents taken into each split, before they are cut and capped."""
    left_out: dict[str, int]
    """Records left out, by reason; each is a line of `left_out.jsonl`."""
    files: int
    """Read."""
    files_not_read: tuple[str, ...]
    """Paths below the source that are no corpus files, or hidden."""


def documents_path(stage: Path, split: Split) -> Path:
    """The documents of a split inside the `tokenize` artifact."""
    return stage / "documents" / f"{split}.jsonl.zst"


class _LeftOut:
    """Lists and counts the records that are left out: bounded memory, however many they are."""

    def __init__(self, file: TextIO, source: Source) -> None:
        self._file, self._source = file, source
        self.counts: Counter[str] = Counter()

    def bad(self, bad: BadDocument) -> None:
        """A record that is no document."""
        place = {"file": self._source.path_of(bad.file), "line": bad.line}
        self._add(bad.reason, place | {"why": bad.why})

    def duplicate(self, document: Document) -> None:
        """A document whose text came before."""
        self._add(DUPLICATE, {"id": document.id})

    def _add(self, reason: str, record: dict[str, Any]) -> None:
        self.counts[reason] += 1
        # Escaped: what is wrong with a record may be its characters.
        self._file.write(json.dumps({"reason": reason, **record}) + "\n")


def gather(
    into: Path,
    source: Source,
    reading: ReadConfig,
    shares: SplitConfig,
    seed: int,
    *,
    drop_duplicates: bool,
    piece_chars: int | None,
) -> CorpusAccount:
    """Write the documents of `source` to `documents_path(into, ...)` of their split, in reading order.

    Of texts that differ in white space at most, the first is taken where `drop_duplicates`; the same split takes them
    all in any case. Longer documents are cut into pieces of `piece_chars` characters behind that choice.
    """
    taken: Counter[Split] = Counter()
    with contextlib.ExitStack() as open_files:
        left_out = _LeftOut(open_files.enter_context((into / LEFT_OUT).open("w", encoding="ascii")), source)
        writers = {split: open_files.enter_context(DocumentWriter(documents_path(into, split))) for split in SPLITS}
        texts = SeenKeys()
        for document in read_documents(source, reading, left_out.bad):
            key = text_key(document.text)
            if drop_duplicates and not texts.add(key):
                left_out.duplicate(document)
                continue
            split = split_of(key, shares, seed)
            taken[split] += 1
            for piece in _pieces(document, piece_chars):
                writers[split].write(piece)
    return CorpusAccount(
        documents={split: taken[split] for split in SPLITS},
        left_out=dict(sorted(left_out.counts.items())),
        files=len(source.files),
        files_not_read=source.left_out,
    )


def _pieces(document: Document, piece_chars: int | None) -> Iterator[Document]:
    return iter((document,)) if piece_chars is None else chunk_documents((document,), piece_chars)
