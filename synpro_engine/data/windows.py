"""Training windows: one source as an endless sequence of them, and which are mostly one phrase again and again.

Window number k of a source is a pure function of (seed, name, k).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from synpro_engine.config import UserError
from synpro_engine.data.corpus import TokenCorpus
from synpro_engine.data.hashing import stable_permutation


@dataclass(frozen=True)
class _Epoch:
    number: int
    documents: NDArray[np.int64]
    """Documents in this epoch's order, [D]."""
    starts: NDArray[np.int64]
    """Where each of them starts in this epoch's stream, and the stream's length at last, [D + 1]."""
    windows: NDArray[np.int64]
    """Windows in the order they are given out, [W]."""


class WindowSource:
    """Windows of `seq_len` + 1 tokens of one corpus; the last token of one is the first of its neighbour.

    In each epoch the documents are shuffled anew and put end to end, the stream is cut, the windows are shuffled.
    What is left after the last whole window (fewer than `seq_len` targets) is dropped, other tokens each epoch.
    Only the current epoch's order is held: memory grows with documents and windows, not with training length.
    """

    def __init__(self, name: str, corpus: TokenCorpus, seq_len: int, seed: int) -> None:
        if corpus.num_tokens <= seq_len:
            raise UserError(
                f"source `{name}`: {corpus.num_tokens} tokens do not fill one window of {seq_len} + 1; "
                "use a shorter sequence or more text"
            )
        self.name, self.corpus, self.seq_len, self.seed = name, corpus, seq_len, seed
        # One token more than whole windows need: the last target of one window is the first input of the next.
        self.windows_per_epoch = (corpus.num_tokens - 1) // seq_len
        self._current: _Epoch | None = None

    def window(self, index: int) -> tuple[NDArray[np.int64], NDArray[np.int64], None]:
        """Return window `index` (from 0, without end): its tokens and the number of the document each is from.

        Both are [seq_len + 1]; None stands for all of them being targets.
        """
        number, within = divmod(index, self.windows_per_epoch)
        epoch = self._epoch(number)
        start = int(epoch.windows[within]) * self.seq_len
        return *self._gather(epoch, start, start + self.seq_len + 1), None

    def documents(self, index: int) -> list[int]:
        """Numbers of the documents whose tokens are in window `index`, in their order."""
        number, within = divmod(index, self.windows_per_epoch)
        epoch = self._epoch(number)
        start = int(epoch.windows[within]) * self.seq_len
        # `right` and less one: the document that begins at or before the place.
        first, last = np.searchsorted(epoch.starts, [start, start + self.seq_len], side="right") - 1
        return epoch.documents[first : last + 1].tolist()

    def place(self, index: int, token: int) -> tuple[int, int]:
        """Of token `token` of window `index`: the number of its document, and its place among that one's tokens."""
        number, within = divmod(index, self.windows_per_epoch)
        epoch = self._epoch(number)
        at = int(epoch.windows[within]) * self.seq_len + token
        place = int(np.searchsorted(epoch.starts, at, side="right")) - 1
        return int(epoch.documents[place]), at - int(epoch.starts[place])

    def reading(self, documents: Collection[int], epoch: int) -> Iterator[tuple[int, int, int]]:
        """Yield (document, window, tokens) of an epoch: how many of a document's tokens are inputs of a window."""
        order = self._epoch(epoch)
        given = np.argsort(order.windows)
        for place in np.flatnonzero(np.isin(order.documents, list(documents))):
            start, end = order.starts[place : place + 2].tolist()
            for at in range(start // self.seq_len, min(-(-end // self.seq_len), self.windows_per_epoch)):
                tokens = min(end, (at + 1) * self.seq_len) - max(start, at * self.seq_len)
                yield int(order.documents[place]), epoch * self.windows_per_epoch + int(given[at]), tokens

    def tokens_given(self, windows: int, kinds_D: NDArray[np.int64], kinds: int) -> NDArray[np.int64]:
        """Input tokens in the first `windows` windows by the kind (from 0) of their document, int64 [kinds]."""
        given = np.zeros(kinds, np.int64)
        for number in range(-(-windows // self.windows_per_epoch)):
            epoch = self._epoch(number)
            begins = epoch.windows[: windows - number * self.windows_per_epoch] * self.seq_len
            ends = begins + self.seq_len
            at_begins, at_ends = (np.searchsorted(epoch.starts, places, side="right") - 1 for places in (begins, ends))
            for kind in range(len(given)):
                own_D = kinds_D[epoch.documents] == kind
                # Tokens of the kind before each document; within one of the kind every further token is one more.
                before_D = np.concatenate([[0], np.cumsum(np.diff(epoch.starts) * own_D)])
                for sign, places, at in ((-1, begins, at_begins), (1, ends, at_ends)):
                    within = (places - epoch.starts[at]) * own_D[at]
                    given[kind] += sign * int((before_D[at] + within).sum())
        return given

    def _epoch(self, number: int) -> _Epoch:
        if self._current is None or self._current.number != number:
            # Name and epoch only: neither batch size nor ranks enter, so the order is the same in every layout.
            key = f"{self.name}\0{number}"
            documents = stable_permutation(self.corpus.num_documents, self.seed, "documents", key)
            lengths = np.diff(self.corpus.offsets)[documents]
            starts = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
            # Shuffled too, or a batch would hold neighbours: long documents would fill it alone.
            windows = stable_permutation(self.windows_per_epoch, self.seed, "windows", key)
            self._current = _Epoch(number, documents, starts, windows)
        return self._current

    def _gather(self, epoch: _Epoch, start: int, stop: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the tokens [start, stop) of the epoch's stream, and their documents."""
        first, last = np.searchsorted(epoch.starts, [start, stop - 1], side="right") - 1
        pieces = []
        for place in range(first, last + 1):
            tokens = self.corpus.document_tokens(int(epoch.documents[place]))
            begin = int(epoch.starts[place])
            pieces.append(tokens[max(start - begin, 0) : stop - begin])
        documents = np.repeat(epoch.documents[first : last + 1], [len(piece) for piece in pieces])
        # int64 as embeddings want it; a corpus is kept in 2 or 4 bytes an id, and only a window is widened.
        return np.concatenate(pieces).astype(np.int64), documents


def repetition_mask(
    tokens_BS: NDArray[np.integer], *, max_period: int = 13, min_repeats: int = 32
) -> NDArray[np.bool_]:
    """Return for each window whether an n-gram of 1 to `max_period` tokens stands `min_repeats` times in a row.

    Windows that are mostly one short phrase give large, useless gradients; the published runs mask their loss.

    tokens_BS [B, S] ids -> bool [B]. A period p that repeats r times is a run of (r - 1) * p positions at which
    a token equals the one p before it, so one comparison and one running sum a period find it.
    """
    repeats_B = np.zeros(len(tokens_BS), dtype=bool)
    for period in range(1, max_period + 1):
        run = (min_repeats - 1) * period
        equal_BT = tokens_BS[:, period:] == tokens_BS[:, :-period]
        # Longer periods need longer runs still.
        if equal_BT.shape[1] < run:
            break
        sums_BT = np.pad(np.cumsum(equal_BT, axis=1, dtype=np.int32), ((0, 0), (1, 0)))
        repeats_B |= (sums_BT[:, run:] - sums_BT[:, :-run] == run).any(axis=1)
    return repeats_B
