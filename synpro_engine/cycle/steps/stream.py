"""One pass over documents into the files of their splits: read in one thread, encoded in others, written as they come.

A journal notes every `_MARK_CHARS` of text how far all files are, so that a pass that was broken off anywhere goes on
from there, with the same bytes in the end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from synpro_engine.config.journal import GrowingFile, Journal
from synpro_engine.data import Document, Split, Tokenizer
from synpro_engine.data.capped import Spool
from synpro_engine.data.encoding import BATCH_CHARS, Encoded, encode_documents, in_order, with_end
from synpro_engine.data.shards import ShardWriter
from synpro_engine.data.writer import DocumentFrames, written_documents

_MARK_CHARS = 1 << 26


class Bar(Protocol):
    """What shows how far a pass is."""

    def update(self, n: int, /) -> object:
        """So many bytes of the files more are read."""
        ...


ShowBar = Callable[[int, str], AbstractContextManager[Bar]]
"""Opens a bar of so many bytes, with a name."""


@contextmanager
def no_bar(total: int, name: str) -> Iterator[Bar]:
    """Where nobody looks."""

    class Silent:
        def update(self, n: int, /) -> object:
            """Nothing is shown."""

    yield Silent()


@dataclass(frozen=True)
class Mark:
    """How far the reader of a pass is: what it needs to go on, and how much of its own files belongs to that."""

    state: dict[str, Any]
    ends: dict[GrowingFile, int]


@dataclass
class Batch:
    """Documents that are encoded together, by their splits; whether the journal notes what is written with them."""

    documents: dict[Split, list[Document]] = field(default_factory=dict)
    tokens: dict[Split, list[NDArray[np.integer]]] = field(default_factory=dict)
    """Of each document, where they came as tokens; without begin and end."""
    mark: Mark | None = None
    chars: int = 0

    def add(self, split: Split, document: Document, tokens: NDArray[np.integer] | None) -> None:
        """Append a document."""
        self.documents.setdefault(split, []).append(document)
        self.chars += len(document.text)
        if tokens is not None:
            self.tokens.setdefault(split, []).append(tokens)


class Sink(Protocol):
    """Where the documents of one split go."""

    def wants(self, id: str) -> bool:
        """Whether a document of this id need be encoded at all."""
        ...

    def add(self, documents: Sequence[Document], encoded: Encoded | None) -> None:
        """Append documents, with their tokens where there is a tokenizer."""
        ...

    def end_block(self) -> int:
        """Have all files end where they can be gone on with; UTF-8 bytes of all texts in the shards so far."""
        ...


class WholeSplit:
    """All documents of a split, written as text, as tokens, or both."""

    def __init__(self, documents: DocumentFrames | None, shards: ShardWriter | None) -> None:
        self._documents, self._shards = documents, shards

    def wants(self, id: str) -> bool:
        """Each one."""
        return True

    def add(self, documents: Sequence[Document], encoded: Encoded | None) -> None:
        """Append documents."""
        if self._documents is not None:
            self._documents.write(documents)
        if self._shards is not None:
            assert encoded is not None
            self._shards.add((document.id for document in documents), encoded)

    def end_block(self) -> int:
        """End the frame in hand."""
        if self._documents is not None:
            self._documents.end_frame()
        return 0 if self._shards is None else self._shards.text_bytes


class CappedSplit:
    """Those documents of a split that a cap may leave, for a sort behind the pass."""

    def __init__(self, spool: Spool) -> None:
        self._spool = spool

    def wants(self, id: str) -> bool:
        """Each one below the ceiling."""
        return self._spool.wants(id)

    def add(self, documents: Sequence[Document], encoded: Encoded | None) -> None:
        """Append documents."""
        assert encoded is not None
        self._spool.add(documents, encoded)

    def end_block(self) -> int:
        """End the frame in hand; the sort counts anew."""
        self._spool.end_frame()
        return 0


def run_pass(
    batches: Iterable[Batch],
    sinks: Mapping[Split, Sink],
    journal: Journal,
    encode: Callable[[Batch], Mapping[Split, Encoded]],
    threads: int,
) -> None:
    """Write all batches, the last one of which is marked as the end."""
    for batch, encoded in in_order(batches, encode, threads):
        for split, documents in batch.documents.items():
            sinks[split].add(documents, encoded.get(split))
        if batch.mark is not None:
            text_bytes = {split: sink.end_block() for split, sink in sinks.items()}
            journal.commit(batch.mark.state | {"text_bytes": text_bytes}, batch.mark.ends)


def encoder(tokenizer: Tokenizer | None) -> Callable[[Batch], Mapping[Split, Encoded]]:
    """What gives the tokens of a batch's documents; none without a tokenizer."""

    def encode(batch: Batch) -> Mapping[Split, Encoded]:
        if tokenizer is None:
            return {}
        return {
            split: encode_documents(tokenizer, [document.text for document in documents])
            if split not in batch.tokens
            else with_end(tokenizer, batch.tokens[split], [document.text for document in documents])
            for split, documents in batch.documents.items()
        }

    return encode


class Batcher:
    """Deals what a reader reads into batches, some of which it marks."""

    def __init__(self, sinks: Mapping[Split, Sink], mark: Callable[[bool], Mark]) -> None:
        """mark: gives the reader's present mark; it is told whether this is the end."""
        self._sinks, self._mark = sinks, mark
        self._batch, self._since = Batch(), 0

    def add(self, split: Split, document: Document, tokens: NDArray[np.integer] | None = None) -> None:
        """Put a document into the batch in hand, if its sink has use for it."""
        if self._sinks[split].wants(document.id):
            self._batch.add(split, document, tokens)

    def read(self, chars: int) -> Iterator[Batch]:
        """Yield the batch in hand if it is full or a mark is due, behind a record of so many characters.

        Marks go by what was read and not by what is wanted of it, which depends on how far the threads are: frames
        end at marks, and are to be the same whenever the pass is made.
        """
        self._since += chars
        if self._since >= _MARK_CHARS:
            self._batch.mark, self._since = self._mark(False), 0
        if self._batch.mark is not None or self._batch.chars >= BATCH_CHARS:
            yield self._batch
            self._batch = Batch()

    def end(self) -> Batch:
        """The last batch."""
        self._batch.mark = self._mark(True)
        return self._batch


def stored_batches(
    path: Path, split: Split, sinks: Mapping[Split, Sink], journal: Journal, on_bytes: Callable[[int], object]
) -> Iterator[Batch]:
    """The documents that an earlier pass wrote for a split."""
    line = int(journal.state.get("line", 0))
    batcher = Batcher(sinks, lambda done: Mark({"line": line, "done": done}, {}))
    for number, document in written_documents(path, line, on_bytes):
        line = number
        batcher.add(split, document)
        yield from batcher.read(len(document.text))
    yield batcher.end()
