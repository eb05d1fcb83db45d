"""The loss on held-out batches: a mean over tokens of the whole job, pure cross-entropy."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from synpro_engine.config import UserError
from synpro_engine.data import IGNORE
from synpro_engine.data.batch import Batch
from synpro_engine.dist import broadcast_object, sum_over
from synpro_engine.model.model import Model
from synpro_engine.model.scoring import score_tokens
from synpro_engine.model.shared_rows import documents_apart
from synpro_engine.train.losses import LabelledBatch, count_labels

B = TypeVar("B", bound=LabelledBatch)


def held_out_losses(
    model: Model,
    held_out: Mapping[str, Iterable[LabelledBatch]],
    mixed: Mapping[str, Mapping[str, float]],
    *,
    micro_batch: int,
) -> dict[str, float]:
    """`held_out_loss` of each set, and of each of `mixed` the mean of those that it names, by weight. Collective."""
    # The same order of sets on every rank: each evaluation is full of collectives.
    losses = {name: held_out_loss(model, batches, micro_batch=micro_batch) for name, batches in held_out.items()}
    for name, weights in mixed.items():
        losses[name] = sum(w * losses[part] for part, w in weights.items()) / sum(weights.values())
    return broadcast_object(losses, model.topology)  # a last bit at a limit would part the ranks


def held_out_loss(model: Model, batches: Iterable[LabelledBatch], *, micro_batch: int = 8) -> float:
    """Mean of -log p(label) in nats over all labels that are not ignored, on all data-parallel ranks.

    batches: this rank's share. Every token weighs the same, whatever the batch or rank it is in; the result is equal on
    every rank. Collective over the job. Raises UserError when there is not a single label.
    """
    # fp64, for the sum goes on from batch to batch: in fp32 it would take in small terms ever more coarsely. Both
    # numbers stand in one tensor, so that one all-reduce at the end serves them.
    totals = torch.zeros(2, dtype=torch.float64, device=model.topology.device)  # sum of -log p, labels
    for batch, logprob_BS in _scored(model, batches, micro_batch):
        totals[0] -= logprob_BS.sum()
        totals[1] += count_labels(batch.labels_BS).to(totals.device)
    loss, count = sum_over(model.topology.dp, totals).tolist()
    if count == 0:
        raise UserError("held-out data: not a single token to predict")
    return loss / count


def held_out_nats(
    model: Model, batches: Iterable[Batch], kind_D: NDArray[np.int64], kinds: int, *, micro_batch: int = 8
) -> list[tuple[float, int]]:
    """Sum of -log p(label) in nats and the number of labels, by kinds of documents; as `held_out_loss` otherwise.

    kind_D: the kind, from 0, of each document that the batches number.
    """
    device = model.topology.device
    kinds_D, totals_K2 = torch.from_numpy(kind_D), torch.zeros(kinds, 2, dtype=torch.float64, device=device)
    for batch, logprob_BS in _scored(model, batches, micro_batch):
        assert batch.document_BS is not None
        kind_BS = torch.where(batch.labels_BS == IGNORE, -1, kinds_D[batch.document_BS.clamp(min=0)]).to(device)
        for kind in range(kinds):  # and no scattered sum, whose order a GPU leaves open
            totals_K2[kind, 0] -= logprob_BS[kind_BS == kind].sum()
            totals_K2[kind, 1] += (kind_BS == kind).sum()
    return [(nats, int(labels)) for nats, labels in sum_over(model.topology.dp, totals_K2).tolist()]


def _scored(model: Model, batches: Iterable[B], micro_batch: int) -> Iterator[tuple[B, Tensor]]:
    """Each batch with log p of its labels, fp64 [B, S] on the model's device, 0 where a label is ignored."""
    for batch in batches:
        rows = documents_apart(batch, model.topology.device)
        scored = score_tokens(model, batch.tokens_BS, batch.labels_BS, micro_batch=micro_batch, rows=rows)
        yield batch, scored.logprob.double()
