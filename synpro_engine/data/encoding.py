"""Many texts to ids in several threads, in order: the very ids that each text has when it is encoded alone."""

from __future__ import annotations

import contextlib
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple, Protocol, TypeVar, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from synpro_engine.data.rows import Rows, rows_of
from synpro_engine.data.tokenizer import Tokenizer

BATCH_CHARS = 1 << 18
"""Characters that a thread encodes at once: enough to make handing over cheap, little enough to be held many times."""
_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


@runtime_checkable
class BatchTokenizer(Protocol):
    """A tokenizer that encodes many texts at once, outside Python's lock."""

    def encode_batch(self, texts: Sequence[str]) -> Rows:
        """The ids of each text, those of `Tokenizer.encode`."""
        ...


class Encoded(NamedTuple):
    """Documents' ids with begin and end, end to end: tokens [N] of any integer type, lengths [D] int64."""

    tokens: NDArray[np.integer]
    lengths: NDArray[np.int64]
    text_bytes: int
    """Of the texts in UTF-8."""


def encode_documents(tokenizer: Tokenizer, texts: Sequence[str]) -> Encoded:
    """The ids of documents as models are trained on them: `document_ids` of each."""
    batch = isinstance(tokenizer, BatchTokenizer)
    rows = tokenizer.encode_batch(texts) if batch else rows_of([tokenizer.encode(text) for text in texts])
    return framed(tokenizer, rows, texts)


def token_counter(tokenizer: Tokenizer) -> Callable[[str], int]:
    """What counts the ids of a text (`Tokenizer.encode`), outside Python's lock where the tokenizer can."""
    if isinstance(tokenizer, BatchTokenizer):
        return lambda text: int(tokenizer.encode_batch([text]).lengths[0])
    return lambda text: len(tokenizer.encode(text))


def framed(tokenizer: Tokenizer, rows: Rows, texts: Sequence[str]) -> Encoded:
    """The same of texts whose ids (`Tokenizer.encode`) are known."""
    return _framed(rows, tokenizer.bos_id, tokenizer.eos_id, texts)


def with_end(tokenizer: Tokenizer, ids: Sequence[NDArray[np.integer]], texts: Sequence[str]) -> Encoded:
    """Documents that are ids already, each with its end behind it; `texts` is what they spell."""
    rows = Rows(np.concatenate(ids).astype(np.int32), np.fromiter(map(len, ids), np.int64, len(ids)))
    return _framed(rows, None, tokenizer.eos_id, texts)


def _framed(rows: Rows, begin: int | None, end: int, texts: Sequence[str]) -> Encoded:
    lengths = rows.lengths + (1 if begin is None else 2)
    ends = np.cumsum(lengths)
    tokens = np.full(int(lengths.sum()), end, np.int32)
    inner = np.ones(len(tokens), dtype=bool)
    inner[ends - 1] = False
    if begin is not None:
        tokens[ends - lengths], inner[ends - lengths] = begin, False
    tokens[inner] = rows.tokens
    return Encoded(tokens, lengths, sum(len(text.encode()) for text in texts))


def batched(
    items: Iterable[_Item], chars_of: Callable[[_Item], int], limit: int = BATCH_CHARS
) -> Iterator[list[_Item]]:
    """Yield items by as many as have `limit` characters together."""
    batch: list[_Item] = []
    chars = 0
    for item in items:
        batch.append(item)
        chars += chars_of(item)
        if chars >= limit:
            yield batch
            batch, chars = [], 0
    if batch:
        yield batch


def in_order(items: Iterable[_Item], work: Callable[[_Item], _Result], threads: int) -> Iterator[tuple[_Item, _Result]]:
    """Yield each item with what `work` made of it in one of `threads` threads, in order.

    `items` is read in the caller's thread while the others work, a few items for each of them ahead.
    """
    waiting: deque[tuple[_Item, Future[_Result]]] = deque()
    with _one_thread_each(), ThreadPoolExecutor(threads, "tokenize") as pool:
        try:
            for item in items:
                waiting.append((item, pool.submit(work, item)))
                # Two for each thread: one in work, one ready for when that is done.
                if len(waiting) > 2 * threads:
                    first, result = waiting.popleft()
                    yield first, result.result()
            while waiting:
                first, result = waiting.popleft()
                yield first, result.result()
        finally:
            for _, result in waiting:  # after a fault nobody wants them
                result.cancel()


def usable_cpus() -> int:
    """How many CPUs this process may use."""
    return len(os.sched_getaffinity(0))


@contextlib.contextmanager
def _one_thread_each() -> Iterator[None]:
    """Within: `tokenizers` opens no threads of its own, whose number could not be chosen; ours take their place."""
    name = "TOKENIZERS_PARALLELISM"
    before = os.environ.get(name)
    os.environ[name] = "false"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
