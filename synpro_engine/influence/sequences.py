"""Log-probabilities of whole sequences of any length under one model: each token scored exactly once.

Knows windows and padding; does not know what the numbers are for.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from synpro_engine.model.model import Model
from synpro_engine.model.scoring import IGNORED, score_tokens


@dataclass(frozen=True)
class _Window:
    """A piece of one sequence that fits the model: inputs, and the targets it scores."""

    sequence: int
    inputs: Sequence[int]
    targets: Sequence[int]


def _windows(sequence: int, ids: Sequence[int], start_id: int, length: int) -> Iterator[_Window]:
    """The first token has `start_id` (the separator of documents) as its context."""
    inputs = [start_id, *ids[:-1]]
    for at in range(0, len(ids), length):
        yield _Window(sequence, inputs[at : at + length], ids[at : at + length])


def _pad(windows: Sequence[_Window], filler: int) -> tuple[Tensor, Tensor]:
    """tokens_BS and labels_BS; right padding is unseen under causal attention, and not scored."""
    width = max(len(window.inputs) for window in windows)
    tokens_BS = torch.full((len(windows), width), filler, dtype=torch.int64)
    labels_BS = torch.full((len(windows), width), IGNORED, dtype=torch.int64)
    for row, window in enumerate(windows):
        tokens_BS[row, : len(window.inputs)] = torch.as_tensor(window.inputs)
        labels_BS[row, : len(window.targets)] = torch.as_tensor(window.targets)
    return tokens_BS, labels_BS


def sequence_logprobs(
    model: Model, sequences: Sequence[Sequence[int]], *, start_id: int, micro_batch: int = 16
) -> list[Tensor]:
    """Log-prob of every token of every sequence: float64 [len] on the CPU each, in nats.

    A sequence longer than the model's `seq_len` is scored in consecutive windows, each with its own context.
    Collective over the tensor and pipeline axes, which must call with the same sequences.
    """
    length = model.config.seq_len
    windows = [w for i, ids in enumerate(sequences) for w in _windows(i, ids, start_id, length)]
    found: dict[int, Tensor] = {}
    by_length = sorted(range(len(windows)), key=lambda at: len(windows[at].inputs))  # little padding
    for start in range(0, len(windows), micro_batch):
        batch = by_length[start : start + micro_batch]
        tokens_BS, labels_BS = _pad([windows[at] for at in batch], start_id)
        scored = score_tokens(model, tokens_BS, labels_BS, micro_batch=micro_batch)
        logprobs_BS = scored.logprob.double().cpu()
        found |= {at: logprobs_BS[row, : len(windows[at].targets)] for row, at in enumerate(batch)}
    parts: list[list[Tensor]] = [[] for _ in sequences]
    for at, window in enumerate(windows):
        parts[window.sequence].append(found[at])
    return [torch.cat(part) if part else torch.zeros(0, dtype=torch.float64) for part in parts]
