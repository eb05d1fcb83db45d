"""Batches of token windows to evaluate on: each token of a corpus is a target once."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray

from synpro_engine.data.batch import Batch
from synpro_engine.data.corpus import TokenCorpus
from synpro_engine.data.task_windows import TaskWindows
from synpro_kernels import IGNORE

Row = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]
"""Inputs, labels and the labels' documents of one window, each [seq_len]; -1 for none."""


def eval_windows(
    corpus: TokenCorpus,
    seq_len: int,
    *,
    batch_size: int,
    max_tokens: int | None = None,
    dp_rank: int = 0,
    dp_size: int = 1,
    separate_documents: bool = False,
) -> Iterator[Batch]:
    """Yield this rank's batches [batch_size, seq_len] over the first `max_tokens` targets of `corpus` (all of them).

    Windows follow each other without overlap, in file order; an EOS stands before the first, so the very first token
    is a target too. Of tasks each window holds whole ones (see `TaskWindows`), and the last may go beyond `max_tokens`.
    Each rank gets as many batches of the same shape as any other (they may hold collectives); what fills them up has
    the label IGNORE, so sums over ranks count each target once. separate_documents: as in `TokenLoader`.
    """
    assert 0 <= dp_rank < dp_size and batch_size > 0
    row_of, windows = _eval_rows(corpus, seq_len, max_tokens)
    per_round = batch_size * dp_size
    for first in range(dp_rank * batch_size, -(-windows // per_round) * per_round, per_round):
        rows = [row_of(index) for index in range(first, first + batch_size)]
        arrays = (torch.from_numpy(np.stack(each)) for each in zip(*rows, strict=True))
        yield Batch(*arrays, apart=separate_documents)


@dataclass(frozen=True)
class EvalBatches:
    """Batches that are made anew at each pass through them: held-out text may be more than memory holds."""

    make: Callable[[], Iterator[Batch]]

    def __iter__(self) -> Iterator[Batch]:
        return self.make()


def reference_windows(
    corpora: Mapping[str, TokenCorpus],
    weights: Mapping[str, float],
    seq_len: int,
    *,
    batch_size: int,
    max_tokens: int | None = None,
    dp_rank: int = 0,
    dp_size: int = 1,
    separate_documents: bool = False,
) -> dict[str, list[Batch]]:
    """`eval_windows` of several corpora, by their names.

    max_tokens: targets in all at most, from the head of each in proportion to its weight, or what it has.
    """
    whole, found = sum(weights[name] for name in corpora), {}
    for name, corpus in corpora.items():
        # Rounded up: a share too small for a token still has its say.
        limit = None if max_tokens is None else math.ceil(max_tokens * weights[name] / whole - 1e-9)
        windows = eval_windows(
            corpus, seq_len, batch_size=batch_size, max_tokens=limit, dp_rank=dp_rank, dp_size=dp_size,
            separate_documents=separate_documents,
        )  # fmt: skip
        found[name] = list(windows)
    return found


def _task_rows(tasks: TaskWindows, max_tokens: int | None) -> int:
    """Windows at the head that hold `max_tokens` targets, or all."""
    count, learnt = 0, 0
    while count < tasks.windows_per_epoch and (max_tokens is None or learnt < max_tokens):
        learnt += sum(int(np.count_nonzero(tasks.corpus.document_learnt(n))) for n in tasks.documents(count))
        count += 1
    return count


def _eval_rows(corpus: TokenCorpus, seq_len: int, max_tokens: int | None) -> tuple[Callable[[int], Row], int]:
    """What makes the row of an index, beyond the last one an empty one, and how many there are."""
    if corpus.learnt is None:
        targets = min(corpus.num_tokens, max_tokens if max_tokens is not None else corpus.num_tokens)
        # Rounded up, so that the last, partial window counts too: dropping it would leave tokens unmeasured.
        return partial(_eval_window, corpus, seq_len, targets=targets), -(-targets // seq_len)
    tasks = TaskWindows("held out", corpus, seq_len)
    count = _task_rows(tasks, max_tokens)

    def row(index: int) -> Row:
        if index >= count:
            return _filler(corpus, seq_len)
        tokens, numbers, is_target = tasks.window(index)
        return tokens[:-1].copy(), np.where(is_target[1:], tokens[1:], IGNORE), numbers[1:]

    return row, count


def _eval_window(corpus: TokenCorpus, seq_len: int, index: int, targets: int) -> Row:
    inputs, labels, numbers = _filler(corpus, seq_len)
    # A window beyond the end only fills a rank's batch up: it is EOS and IGNORE throughout.
    start = min(index * seq_len, targets)
    target = corpus.tokens[start : min(start + seq_len, targets)]
    labels[: len(target)] = target
    places = np.arange(start, start + len(target))
    numbers[: len(target)] = np.searchsorted(corpus.offsets, places, side="right") - 1
    # Inputs are the stream one step earlier; before the first token that is the EOS already there.
    lead = int(start == 0)
    source = corpus.tokens[start - 1 + lead : start - 1 + max(len(target), lead)]
    inputs[lead : lead + len(source)] = source
    return inputs, labels, numbers


def _filler(corpus: TokenCorpus, seq_len: int) -> Row:
    """What a window is beyond the corpus."""
    inputs, labels, numbers = (np.full(seq_len, value, dtype=np.int64) for value in (corpus.eos_id, IGNORE, -1))
    return inputs, labels, numbers
