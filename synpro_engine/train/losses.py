"""What pretraining minimises, as sums over tokens: next-token cross-entropy plus the z-loss.

The denominator is the engine's. Shapes: B sequences, S positions, H hidden width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from synpro_engine.data import IGNORE
from synpro_engine.model.model import Model
from synpro_engine.model.shared_rows import documents_apart
from synpro_engine.train.config import DistillConfig, OutputLayer


class MicroBatch(Protocol):
    """What the engine itself needs of a micro-batch: token ids, int64 [B, S]. The rest is for the loss."""

    @property
    def tokens_BS(self) -> Tensor:
        """Token ids, int64 [B, S], on the engine's device."""
        ...


class LabelledBatch(MicroBatch, Protocol):
    """Tokens with the id that each position should predict."""

    @property
    def labels_BS(self) -> Tensor:
        """Target ids, int64 [B, S]; -100 is ignored."""
        ...


@dataclass(frozen=True, kw_only=True)
class LossTerms:
    """Sums over one micro-batch's tokens, fp32 scalars on the device.

    `objective` is differentiated, `loss` is reported; they differ by regularisers, which no reported loss contains.
    `extras` are further sums to report.
    """

    objective: Tensor
    loss: Tensor
    extras: Mapping[str, Tensor] = field(default_factory=dict)


class LanguageModelLoss:
    """Sum of -log p(label), plus `z_loss` times the sum of logsumexp(logits)^2 (Chowdhery et al., arXiv 2204.02311).

    The z-loss keeps the softmax normaliser near 1; it enters the objective only, and is reported as extra `z_loss`
    (the weighted sum). How the output layer is computed is a setting:

    `fused`, for `Engine.step`: the gradient is made in the forward pass, and that of a trained output layer goes to the
    engine's fp32 buffers past autograd. `recomputed`: in the backward pass, through autograd, so that hooks see it, for
    a product more. `materialised`: with every logit held, for comparison.
    """

    def __init__(self, z_loss: float = 0.0, *, output_layer: OutputLayer = "fused") -> None:
        assert z_loss >= 0
        self.z_loss = z_loss
        self.output_layer = output_layer

    def __call__(self, model: Model, hidden_BSH: Tensor, batch: LabelledBatch) -> LossTerms:
        """Sums over the labels of `batch` that are not ignored, where this rank has them. Last pipeline stage only."""
        # Where they are: of labels on the host the fused operations know without a wait which tokens are computed.
        labels_BS = model.own_columns(batch.labels_BS)
        if self.output_layer == "fused":
            # The operation sums: dividing here would round each micro-batch by its own count,
            # and the engine knows the job's.
            sums = model.cross_entropy_from_hidden(hidden_BSH, labels_BS, z_loss=self.z_loss)
            objective, loss, z = sums.loss, sums.cross_entropy, sums.z_loss
        else:
            # Ignored positions have a logprob and a logsumexp of 0 by the operation's contract.
            materialised = self.output_layer == "materialised"
            scored = model.logprobs_from_hidden(hidden_BSH, labels_BS.to(hidden_BSH.device), materialised=materialised)
            loss, z = -scored.logprob.sum(), self.z_loss * scored.logsumexp.square().sum()
            objective = loss + z
        return LossTerms(objective=objective, loss=loss, extras={"z_loss": z} if self.z_loss else {})


class DistillationLoss(LanguageModelLoss):
    """The same with a share of it taken from teachers, by the divergence from their mean distribution.

    Cross-entropy is what is reported as the loss, as without teachers; `divergence` is an extra. Teachers read each
    micro-batch as the student does, without gradients, and whole: what dropout leaves out, tokens too, is left out for
    the student alone.
    """

    def __init__(self, z_loss: float, config: DistillConfig, teachers: Sequence[Model]) -> None:
        super().__init__(z_loss)
        assert len(teachers) == len(config.teachers), "each teacher that is named is there"
        self._config, self._teachers = config, teachers

    def __call__(self, model: Model, hidden_BSH: Tensor, batch: LabelledBatch) -> LossTerms:
        """See `LanguageModelLoss`; without a pipeline."""
        rows, columns = documents_apart(batch, hidden_BSH.device), hidden_BSH.size(1)
        with torch.no_grad():
            read = [(teacher, teacher.hidden(batch.tokens_BS, rows)[:, :columns]) for teacher in self._teachers]
        labels_BS = model.own_columns(batch.labels_BS)
        sums = model.distill_from_hidden(
            hidden_BSH, labels_BS, teachers=read, mixture=self._config.mixture,
            share=self._config.share, temperature=self._config.temperature, z_loss=self.z_loss,
        )  # fmt: skip
        extras = {"divergence": sums.divergence} | ({"z_loss": sums.z_loss} if self.z_loss else {})
        return LossTerms(objective=sums.loss, loss=sums.cross_entropy, extras=extras)


def count_labels(labels_BS: Tensor) -> Tensor:
    """Number of labels that are not ignored, int64 scalar where they are."""
    return torch.count_nonzero(labels_BS != IGNORE)
