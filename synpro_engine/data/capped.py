"""A corpus cut down to a budget of tokens while it streams by.

Which documents stay is what `cap_documents` says: those that come first in an order by hash, as many as fit, and in
that order. Held are 16 bytes for each of them; the documents themselves wait in a file, and are sorted on the disk.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import zstandard
from numpy.typing import NDArray

from synpro_engine.config import UserError, remove_directory
from synpro_engine.config.journal import GrowingFile
from synpro_engine.data.documents import Document
from synpro_engine.data.encoding import Encoded
from synpro_engine.data.hashing import stable_hash
from synpro_engine.data.writer import document_line

_EVERY = 2**64
"""A ceiling above every hash."""
_FRAME_BYTES = 1 << 20
_BUCKET_BYTES = 1 << 26  # sorted in memory at once
_MOST_BUCKETS = 512  # files open together
_COUNTED = 256  # documents read together


class Cap:
    """Which documents come first in the hash order of (seed, id), as many as fit a budget."""

    def __init__(self, budget: int, seed: int) -> None:
        self.budget, self._seed, self._total = budget, seed, 0
        self.ceiling = _EVERY
        """No document from this hash on can be among them: the first that does not fit, and all that follow it."""
        self._orders, self._sizes = [np.empty(0, np.uint64)], [np.empty(0, np.int64)]

    def order(self, id: str) -> int:
        """The place of a document in the order."""
        # By id and not by place, so that other files, or the same in another order, leave the choice as it is.
        return stable_hash(self._seed, "cap", id)

    def add(self, orders: NDArray[np.uint64], sizes: NDArray[np.int64]) -> None:
        """Take documents into account, by their places in the order and their sizes in the budget's unit."""
        self._orders.append(orders)
        self._sizes.append(sizes)
        self._total += int(sizes.sum())
        # Now and then, so that the sorting stays small beside what else a document costs.
        if self._total > self.budget + self.budget // 8:
            self.settle()

    def settle(self) -> None:
        """Let go of all that do not fit, and lower the ceiling to the first of them."""
        orders, sizes = np.concatenate(self._orders), np.concatenate(self._sizes)
        by_order = np.argsort(orders)
        orders, sizes = orders[by_order], sizes[by_order]
        # A prefix without holes: what follows a document that did not fit stays out, however small.
        fits = int(np.searchsorted(np.cumsum(sizes), self.budget, side="right"))
        if fits < len(orders):
            self.ceiling = min(self.ceiling, int(orders[fits]))
        self._orders, self._sizes, self._total = [orders[:fits]], [sizes[:fits]], int(sizes[:fits].sum())

    @property
    def kept(self) -> int:
        """Documents that stay, as of the last time that was settled."""
        return len(self._orders[0])


class Stored(NamedTuple):
    """A document with its tokens, as it waits in a file; `order` decides its place."""

    order: int
    id: str
    line: bytes
    """Of the documents' file."""
    tokens: bytes
    text_bytes: int


class Spool:
    """Documents that may yet be among those that a cap leaves, with their tokens, in the order in which they came."""

    def __init__(self, file: GrowingFile, cap: Cap, dtype: np.dtype[np.integer]) -> None:
        self._file, self._cap, self._dtype = file, cap, dtype
        self._waiting: list[bytes] = []
        self._waiting_bytes = 0
        _fill(cap, file.path, dtype)  # where an earlier start left some

    def wants(self, id: str) -> bool:
        """Whether a document of this id can still be among those that stay."""
        return self._cap.order(id) < self._cap.ceiling

    def add(self, documents: Sequence[Document], encoded: Encoded) -> None:
        """Append documents with their tokens."""
        ends = np.cumsum(encoded.lengths)
        tokens = encoded.tokens.astype(self._dtype)
        stored = [
            Stored(
                self._cap.order(document.id),
                document.id,
                document_line(document),
                tokens[end - length : end].tobytes(),
                len(document.text.encode()),
            )
            for document, end, length in zip(documents, ends.tolist(), encoded.lengths.tolist(), strict=True)
        ]
        self._cap.add(*_taken(stored, self._dtype))
        for document in stored:
            self._waiting.append(_packed(document))
            self._waiting_bytes += len(self._waiting[-1])
        if self._waiting_bytes >= _FRAME_BYTES:
            self.end_frame()

    def end_frame(self) -> None:
        """Put what waits into the file."""
        if self._waiting:
            self._file.write(zstandard.ZstdCompressor().compress(b"".join(self._waiting)))
        self._waiting, self._waiting_bytes = [], 0


def kept_of(
    spool: Path, budget: int, seed: int, dtype: np.dtype[np.integer], aside: Path, key: str
) -> Iterator[Stored]:
    """Yield what a cap leaves of a spool, in hash order, by a sort in files below `aside`, which is removed.

    key: of the setting that the budget is from. UserError when not even the first document fits.
    """
    cap = Cap(budget, seed)
    _fill(cap, spool, dtype)
    if not cap.kept:
        raise UserError(f"{key}: a budget of {budget} holds not one document; raise it or cut the documents smaller")
    kept = (document for document in read_spool(spool) if document.order < cap.ceiling)
    # Text and tokens of a spool are about four times as large as their compressed form.
    buckets = min(_MOST_BUCKETS, 1 + 4 * spool.stat().st_size // _BUCKET_BYTES)
    yield from _sorted(kept, cap.ceiling, buckets, aside)


def _sorted(documents: Iterable[Stored], ceiling: int, buckets: int, aside: Path) -> Iterator[Stored]:
    """Documents below `ceiling` in order: dealt to files by ranges of the order, each of which is sorted in memory."""
    remove_directory(aside)
    aside.mkdir(parents=True)
    paths = [aside / str(number) for number in range(buckets)]
    with ExitStack() as held:
        files = [held.enter_context(path.open("wb")) for path in paths]
        for document in documents:
            files[document.order * buckets // ceiling].write(_packed(document))
    for path in paths:
        with path.open("rb") as file:
            # Hashes are even over their range, and so the buckets about equal.
            yield from sorted(_unpacked(file), key=lambda document: document.order)
        path.unlink()
    remove_directory(aside)


def _fill(cap: Cap, spool: Path, dtype: np.dtype[np.integer]) -> None:
    documents = read_spool(spool)
    while batch := list(islice(documents, _COUNTED)):
        cap.add(*_taken(batch, dtype))
    cap.settle()


def _taken(documents: Sequence[Stored], dtype: np.dtype[np.integer]) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    orders = np.fromiter((document.order for document in documents), np.uint64, len(documents))
    sizes = np.fromiter((len(document.tokens) for document in documents), np.int64, len(documents))
    return orders, sizes // dtype.itemsize


_HEAD = struct.Struct("<QIIQI")  # order; bytes of id, line and tokens; bytes of the text


def _packed(document: Stored) -> bytes:
    id = document.id.encode()
    head = _HEAD.pack(document.order, len(id), len(document.line), len(document.tokens), document.text_bytes)
    return b"".join((head, id, document.line, document.tokens))


def _unpacked(file: BinaryIO) -> Iterator[Stored]:
    while head := file.read(_HEAD.size):
        order, id, line, tokens, text_bytes = _HEAD.unpack(head)
        yield Stored(order, file.read(id).decode(), file.read(line), file.read(tokens), text_bytes)


def read_spool(path: Path) -> Iterator[Stored]:
    """Yield the documents of a spool in the order in which they came."""
    with path.open("rb") as file:
        reader = zstandard.ZstdDecompressor().stream_reader(file, read_across_frames=True)
        yield from _unpacked(io.BufferedReader(reader, _FRAME_BYTES))
