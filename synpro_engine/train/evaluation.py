"""The loss on held-out batches: a mean over tokens of the whole job, pure cross-entropy."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch

from synpro_engine.config import UserError
from synpro_engine.dist import broadcast_object, sum_over
from synpro_engine.model.model import Model
from synpro_engine.model.scoring import score_tokens
from synpro_engine.model.shared_rows import documents_apart
from synpro_engine.train.losses import LabelledBatch, count_labels


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
    device = model.topology.device
    # fp64, for the sum goes on from batch to batch: in fp32 it would take in small terms ever more coarsely. Both
    # numbers stand in one tensor, so that one all-reduce at the end serves them.
    totals = torch.zeros(2, dtype=torch.float64, device=device)  # sum of -log p, labels
    for batch in batches:
        rows = documents_apart(batch, device)
        scored = score_tokens(model, batch.tokens_BS, batch.labels_BS, micro_batch=micro_batch, rows=rows)
        totals[0] -= scored.logprob.double().sum()
        totals[1] += count_labels(batch.labels_BS).to(device)
    loss, count = sum_over(model.topology.dp, totals).tolist()
    if count == 0:
        raise UserError("held-out data: not a single token to predict")
    return loss / count
