"""Held-out corpora as batches in which each token is a target exactly once."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray

from synpro_engine.data.corpus import TokenCorpus
from synpro_engine.data.loader import Batch
from synpro_kernels import IGNORE


def eval_windows(
    corpus: TokenCorpus,
    seq_len: int,
    *,
    batch_size: int,
    max_tokens: int | None = None,
    dp_rank: int = 0,
    dp_size: int = 1,
) -> Iterator[Batch]:
    """Yield this rank's batches [batch_size, seq_len] over the first `max_tokens` tokens of `corpus` (all of them).

    Windows follow each other without overlap, in file order; an EOS stands before the first, so the very first
    token is a target too. Each rank gets as many batches of the same shape as any other (they may hold
    collectives); what fills them up has the label IGNORE, so sums over ranks count each target once.
    """
    assert 0 <= dp_rank < dp_size and batch_size > 0
    targets = min(corpus.num_tokens, max_tokens if max_tokens is not None else corpus.num_tokens)
    windows = -(-targets // seq_len)
    per_round = batch_size * dp_size
    for first in range(dp_rank * batch_size, -(-windows // per_round) * per_round, per_round):
        rows = [_window(corpus, seq_len, index, targets) for index in range(first, first + batch_size)]
        tokens_BS = np.stack([tokens for tokens, _ in rows])
        labels_BS = np.stack([labels for _, labels in rows])
        yield Batch(torch.from_numpy(tokens_BS), torch.from_numpy(labels_BS))


def _window(corpus: TokenCorpus, seq_len: int, index: int, targets: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return (inputs, labels), each [seq_len]; beyond the corpus they are EOS and IGNORE."""
    inputs = np.full(seq_len, corpus.eos_id, dtype=np.int64)
    labels = np.full(seq_len, IGNORE, dtype=np.int64)
    start = min(index * seq_len, targets)
    target = corpus.tokens[start : min(start + seq_len, targets)]
    labels[: len(target)] = target
    # Inputs are the stream one step earlier; before the first token that is the EOS already there.
    lead = int(start == 0)
    source = corpus.tokens[start - 1 + lead : start - 1 + max(len(target), lead)]
    inputs[lead : lead + len(source)] = source
    return inputs, labels
