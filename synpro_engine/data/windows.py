"""Training windows: one source as an endless sequence of them, and which are mostly one phrase again and again.

Window number k of a source is a pure function of (seed, name, k).
"""

from __future__ import annotations

import bisect
from collections.abc import Collection, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from synpro_engine.config import UserError
from synpro_engine.data.corpus import TokenCorpus
from synpro_engine.data.curriculum import Curriculum
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

    In each epoch the documents are shuffled anew and put end to end, the stream is cut, the windows are shuffled; with
    a curriculum, as its passes say. What is left after the last whole window (fewer than `seq_len` targets) is dropped,
    other tokens each epoch. Only the current epoch's order is held: memory grows with documents and windows, not with
    training length.
    """

    def __init__(
        self, name: str, corpus: TokenCorpus, seq_len: int, seed: int, curriculum: Curriculum | None = None
    ) -> None:
        lengths = np.diff(corpus.offsets)
        tokens = corpus.num_tokens if curriculum is None else int(curriculum.least_tokens(lengths))
        if tokens <= seq_len:
            there = "tokens" if curriculum is None else "tokens a pass (`repeats`)"
            raise UserError(
                f"source `{name}`: {tokens} {there} do not fill one window of {seq_len} + 1; "
                "use a shorter sequence or more text"
            )
        self.name, self.corpus, self.seq_len, self.seed, self.curriculum = name, corpus, seq_len, seed, curriculum
        # One token more than whole windows need: the last target of one window is the first input of the next.
        self._windows_per_epoch = (corpus.num_tokens - 1) // seq_len
        self._firsts = [0]
        self._current: _Epoch | None = None

    def take_up(self, windows: int) -> None:
        """Begin the curriculum behind so many windows that were given without one."""
        assert self.curriculum is not None
        # A pass that was begun counts whole: some of its documents were read, and none may be too often.
        passes = -(-windows // self._windows_per_epoch) if windows else 0
        if passes != self.curriculum.passes_before:
            self.curriculum = self.curriculum.after(passes)
            self._firsts, self._current = [0], None

    def epoch_of(self, index: int) -> tuple[int, int]:
        """The epoch of window `index`, and its place there.

        Of a curriculum windows are counted epoch by epoch, once, for none need have as many as another. UserError where
        documents may not be read so often.
        """
        if self.curriculum is None:
            return divmod(index, self._windows_per_epoch)
        while self._firsts[-1] <= index:
            self._count_epoch()
        number = bisect.bisect_right(self._firsts, index) - 1
        return number, index - self._firsts[number]

    def first_window(self, epoch: int) -> int:
        """Windows of all epochs before."""
        if self.curriculum is None:
            return epoch * self._windows_per_epoch
        while len(self._firsts) <= epoch:
            self._count_epoch()
        return self._firsts[epoch]

    def _count_epoch(self) -> None:
        assert self.curriculum is not None
        number = len(self._firsts) - 1
        if self.curriculum.is_used_up(number):
            before = self.curriculum.passes_before
            behind = f" behind {before} passes without a curriculum" if before else ""
            raise UserError(
                f"source `{self.name}`: has text for {self._firsts[-1]} windows of {self.seq_len} tokens and no more"
                f"{behind},"
                " as its documents may not be read more often (`max_epochs`); raise it, or take fewer steps"
            )
        tokens = int((self.curriculum.copies(number) * np.diff(self.corpus.offsets)).sum())
        self._firsts.append(self._firsts[-1] + max(0, tokens - 1) // self.seq_len)

    def window(self, index: int) -> tuple[NDArray[np.int64], NDArray[np.int64], None]:
        """Return window `index` (from 0, without end): its tokens and the number of the document each is from.

        Both are [seq_len + 1]; None stands for all of them being targets.
        """
        number, within = self.epoch_of(index)
        epoch = self._epoch(number)
        start = int(epoch.windows[within]) * self.seq_len
        return *self._gather(epoch, start, start + self.seq_len + 1), None

    def documents(self, index: int) -> list[int]:
        """Numbers of the documents whose tokens are in window `index`, in their order."""
        number, within = self.epoch_of(index)
        epoch = self._epoch(number)
        start = int(epoch.windows[within]) * self.seq_len
        # `right` and less one: the document that begins at or before the place.
        first, last = np.searchsorted(epoch.starts, [start, start + self.seq_len], side="right") - 1
        return epoch.documents[first : last + 1].tolist()

    def stretches(self, index: int) -> list[tuple[int, int, int]]:
        """The inputs of window `index`, in order: a document's number, and which of its tokens, from and up to."""
        number, within = self.epoch_of(index)
        epoch = self._epoch(number)
        begin = int(epoch.windows[within]) * self.seq_len
        first, last = np.searchsorted(epoch.starts, [begin, begin + self.seq_len - 1], side="right") - 1
        starts, ends = epoch.starts[first : last + 1], epoch.starts[first + 1 : last + 2]
        low, high = np.maximum(begin, starts) - starts, np.minimum(begin + self.seq_len, ends) - starts
        return list(zip(epoch.documents[first : last + 1].tolist(), low.tolist(), high.tolist(), strict=True))

    def place(self, index: int, token: int) -> tuple[int, int]:
        """Of token `token` of window `index`: the number of its document, and its place among that one's tokens."""
        number, within = self.epoch_of(index)
        epoch = self._epoch(number)
        at = int(epoch.windows[within]) * self.seq_len + token
        place = int(np.searchsorted(epoch.starts, at, side="right")) - 1
        return int(epoch.documents[place]), at - int(epoch.starts[place])

    def reading(self, documents: Collection[int], epoch: int) -> Iterator[tuple[int, int, int, int]]:
        """Yield (document, window, begin, end) of an epoch: which of a document's tokens are inputs of a window."""
        order = self._epoch(epoch)
        given = np.argsort(order.windows)
        for place in np.flatnonzero(np.isin(order.documents, list(documents))):
            start, end = order.starts[place : place + 2].tolist()
            for at in range(start // self.seq_len, min(-(-end // self.seq_len), len(order.windows))):
                within = max(start, at * self.seq_len) - start, min(end, (at + 1) * self.seq_len) - start
                yield int(order.documents[place]), self.first_window(epoch) + int(given[at]), *within

    def tokens_given(
        self, windows: int, offsets_P: NDArray[np.int64], kinds_P: NDArray[np.integer], kinds: int
    ) -> NDArray[np.int64]:
        """Input tokens in the first `windows` windows by their kind (from 0), int64 [kinds].

        Tokens offsets_P[i] to offsets_P[i + 1] (exclusive) of the corpus are of kind kinds_P[i]; offsets_P [P + 1].
        """
        counts = [_Count(offsets_P, kinds_P == kind, self.corpus.offsets) for kind in range(kinds)]
        given = np.zeros(kinds, np.int64)
        for number in range(self.epoch_of(windows - 1)[0] + 1 if windows else 0):
            epoch = self._epoch(number)
            begins = epoch.windows[: windows - self.first_window(number)] * self.seq_len
            ends = begins + self.seq_len
            at_begins, at_ends = (np.searchsorted(epoch.starts, places, side="right") - 1 for places in (begins, ends))
            for kind, count in enumerate(counts):
                # Tokens of the kind before each document of the stream, and in it before the place.
                before = np.concatenate([[0], np.cumsum(count.of_documents[epoch.documents])])
                for sign, places, at in ((-1, begins, at_begins), (1, ends, at_ends)):
                    within = count.within(epoch.documents[at], places - epoch.starts[at])
                    given[kind] += sign * int((before[at] + within).sum())
        return given

    def _epoch(self, number: int) -> _Epoch:
        if self._current is None or self._current.number != number:
            # Name and epoch only: neither batch size nor ranks enter, so the order is the same in every layout.
            key, groups = f"{self.name}\0{number}", np.zeros(1, np.int64)
            if self.curriculum is None:
                documents = stable_permutation(self.corpus.num_documents, self.seed, "documents", key)
            else:
                found = self.curriculum.at(number)
                documents, groups = found.documents, found.groups
            lengths = np.diff(self.corpus.offsets)[documents]
            starts = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
            count = self.first_window(number + 1) - self.first_window(number)
            self._current = _Epoch(number, documents, starts, self._windows(count, key, starts, groups))
        return self._current

    def _windows(
        self, count: int, key: str, starts: NDArray[np.int64], groups: NDArray[np.int64] | None
    ) -> NDArray[np.int64]:
        """The order in which so many windows are given out."""
        if groups is None:
            return np.arange(count)
        # Shuffled too, or a batch would hold neighbours: long documents would fill it alone.
        windows = stable_permutation(count, self.seed, "windows", key)
        if len(groups) > 1:
            of_window = np.searchsorted(starts[groups], windows * self.seq_len, side="right")
            windows = windows[np.argsort(of_window, kind="stable")]
        return windows

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


class _Count:
    """Tokens of one kind, counted from the beginning of a corpus."""

    def __init__(self, offsets_P: NDArray[np.int64], own_P: NDArray[np.bool_], documents: NDArray[np.int64]) -> None:
        """documents: where each begins in the corpus, and its length, [D + 1]."""
        self._offsets, self._own = offsets_P, own_P
        self._before = np.concatenate([[0], np.cumsum(np.diff(offsets_P) * own_P)])
        self._begins, self._at_begins = documents, self._up_to(documents)
        self.of_documents = np.diff(self._at_begins)
        """In each document, [D]."""

    def within(self, documents: NDArray[np.int64], tokens: NDArray[np.int64]) -> NDArray[np.int64]:
        """Among the first so many tokens of documents."""
        return self._up_to(self._begins[documents] + tokens) - self._at_begins[documents]

    def _up_to(self, places: NDArray[np.int64]) -> NDArray[np.int64]:
        # The end of the corpus lies in no span; it counts to the last one.
        span = np.minimum(np.searchsorted(self._offsets, places, side="right"), len(self._own)) - 1
        return self._before[span] + (places - self._offsets[span]) * self._own[span]


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
