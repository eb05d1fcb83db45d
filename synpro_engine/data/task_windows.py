"""Windows of whole tasks: each response stands behind its own prompt, which a cut through a stream would part it from.

As many neighbours share a window as fit; what is left of it is filled with end-of-text tokens that are no targets.
Attention crosses from task to task, as it does from document to document in training.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from synpro_engine.config import UserError
from synpro_engine.data.corpus import TokenCorpus
from synpro_engine.data.hashing import stable_permutation


class TaskWindows:
    """Windows of `seq_len` + 1 tokens of a corpus that says what is learnt of it, in the order of the corpus."""

    def __init__(self, name: str, corpus: TokenCorpus, seq_len: int, *, seed: int | None = None) -> None:
        """seed: of a shuffled order, of tasks once and of windows in each epoch; None keeps the corpus'.

        UserError for a task that no window holds.
        """
        assert corpus.learnt is not None, "all of these tokens are learnt: they are a stream"
        self.corpus, self.seq_len, self._name, self._seed = corpus, seq_len, name, seed
        lengths = np.diff(corpus.offsets)
        if lengths.max() > seq_len:
            longest = int(lengths.argmax())
            raise UserError(
                f"source `{name}`: {corpus.document_id(longest)} has {lengths[longest]} tokens, a window {seq_len};"
                " tokenise it again for this `model.seq_len`"
            )
        # Once for all epochs, so that each has as many windows.
        ordered = seed is None
        self._tasks = np.arange(len(lengths)) if ordered else stable_permutation(len(lengths), seed, "tasks", name)
        self._current: tuple[int, NDArray[np.int64]] | None = None
        self._first = _packed(lengths[self._tasks], seq_len)

    @property
    def windows_per_epoch(self) -> int:
        """Windows that hold each task once."""
        return len(self._first) - 1

    def documents(self, index: int) -> list[int]:
        """Numbers of the tasks in window `index` (from 0, without end)."""
        number, within = divmod(index, self.windows_per_epoch)
        if self._seed is not None:
            within = int(self._order(number, self._seed)[within])
        return self._tasks[self._first[within] : self._first[within + 1]].tolist()

    def _order(self, number: int, seed: int) -> NDArray[np.int64]:
        """The windows of epoch `number` as they are given out; only the last one asked for is held."""
        if self._current is None or self._current[0] != number:
            key = f"{self._name}\0{number}"
            self._current = number, stable_permutation(self.windows_per_epoch, seed, "windows", key)
        return self._current[1]

    def window(self, index: int) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_]]:
        """Tokens of window `index`, the number of the task each is from, and which are learnt: each [seq_len + 1]."""
        tokens = np.full(self.seq_len + 1, self.corpus.eos_id, dtype=np.int64)
        learnt = np.zeros(self.seq_len + 1, dtype=bool)
        numbers, at = self.documents(index), 1  # an end of text stands before the first
        documents = np.full(self.seq_len + 1, numbers[-1], dtype=np.int64)
        for number in numbers:
            ids = self.corpus.document_tokens(number)
            tokens[at : at + len(ids)], documents[at : at + len(ids)] = ids, number
            learnt[at : at + len(ids)] = self.corpus.document_learnt(number)
            at += len(ids)
        return tokens, documents, learnt


def _packed(lengths: NDArray[np.int64], room: int) -> NDArray[np.int64]:
    """The first task of each window, and their number at last, [W + 1]: neighbours share one as long as they fit."""
    ends, first = np.cumsum(lengths), [0]
    while first[-1] < len(lengths):
        before = 0 if first[-1] == 0 else ends[first[-1] - 1]
        first.append(int(np.searchsorted(ends, before + room, side="right")))
    return np.array(first)
