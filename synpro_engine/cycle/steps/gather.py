"""Documents from their source into the splits of the `tokenize` artifact, one at a time, with an account of them.

Records that are left out are listed with their reasons. Held in memory are 24 bytes a document at the most for its id,
and as many for its text where duplicates are looked for.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from synpro_engine.config import Config, json_text
from synpro_engine.cycle.run_layout import LEFT_OUT, documents_path
from synpro_engine.data import (
    BadDocument,
    Document,
    DocumentWriter,
    ReadConfig,
    SeenKeys,
    Source,
    Split,
    SplitConfig,
    Task,
    TokenDocument,
    TokenFiles,
    Tokenizer,
    check_ids,
    chunk_documents,
    read_placed_documents,
    split_of,
    text_key,
)

SPLITS: tuple[Split, ...] = ("train", "reference", "validation")
_OUT = 255


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


class LeftOut:
    """Lists and counts the records that are left out: bounded memory, however many they are."""

    def __init__(self, file: TextIO, source: Source) -> None:
        self._file, self._source = file, source
        self.counts: Counter[str] = Counter()

    def __call__(self, bad: BadDocument) -> None:
        """List a record by its place."""
        self.counts[bad.reason] += 1
        line = {"reason": bad.reason, "file": self._source.path_of(bad.file), "line": bad.line, "why": bad.why}
        # Escaped: what is wrong with a record may be its characters.
        self._file.write(json_text(line) + "\n")

    def task(self, task: Task) -> None:
        """List a task that no window holds: its place in the file is known by its id alone."""
        self.counts["longer than a window"] += 1
        line = {"reason": "longer than a window", "id": task.id, "why": "no response of it fits `model.seq_len`"}
        self._file.write(json_text(line) + "\n")

    def __str__(self) -> str:
        """The counts in a line."""
        return ", ".join(f"{count} {reason}" for reason, count in sorted(self.counts.items()))


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
        left_out = LeftOut(open_files.enter_context((into / LEFT_OUT).open("w", encoding="ascii")), source)
        writers = {split: open_files.enter_context(DocumentWriter(documents_path(into, split))) for split in SPLITS}
        texts = SeenKeys()
        for record, document in read_placed_documents(source, reading, left_out):
            key = text_key(document.text)
            if drop_duplicates and not texts.add(key):
                why = f"the text of {document.id!r} came before"
                left_out(BadDocument(file=record.file, line=record.line, reason="repeated text", why=why))
                continue
            # By the whole text, before it is cut: pieces of one document in two splits would
            # let training see held-out text.
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


class SortedTokens:
    """The documents of token files by their split: their texts decide, as for other documents. Held is a byte each."""

    def __init__(
        self, source: TokenFiles, tokenizer: Tokenizer, shares: SplitConfig, seed: int, *, drop_duplicates: bool
    ) -> None:
        self._source, self._tokenizer, self._shares, self._seed = source, tokenizer, shares, seed
        self._texts = SeenKeys() if drop_duplicates else None
        self._places = bytearray()
        """Of each document the number of its split, or `_OUT`."""

    def account(self, into: Path) -> CorpusAccount:
        """Read and place them all, before anything else; what is left out is listed in `left_out.jsonl`.

        UserError, which names file and document, for an id that is not the tokenizer's.
        """
        counts: Counter[str] = Counter()
        with (into / LEFT_OUT).open("w", encoding="ascii") as file:
            for document in self._source:
                check_ids(document, self._tokenizer)
                text = self._tokenizer.decode(document.ids.tolist())
                key = text_key(text)
                if not text.strip():
                    reason, why = "empty", f"{document.id!r} spells no text"
                elif self._texts is not None and not self._texts.add(key):
                    reason, why = "repeated text", f"the text of {document.id!r} came before"
                else:
                    self._places.append(SPLITS.index(split_of(key, self._shares, self._seed)))
                    continue
                self._places.append(_OUT)
                counts[reason] += 1
                name = document.id.rpartition(":")[0] + document.file.suffix
                line = {"reason": reason, "file": name, "line": document.number, "why": why}
                file.write(json_text(line) + "\n")
        # The table of texts is needed no more, and is the largest thing held.
        self._texts = None
        return CorpusAccount(
            documents={split: self._places.count(number) for number, split in enumerate(SPLITS)},
            left_out=dict(sorted(counts.items())),
            files=self._source.files,
            files_not_read=(),
        )

    def of(self, split: Split) -> Iterator[TokenDocument]:
        """Documents of one split, in reading order."""
        wanted = SPLITS.index(split)
        # The files are read once for each split: cheaper than holding the ids, which may be more than memory.
        return (document for document, at in zip(self._source, self._places, strict=True) if at == wanted)
