"""What pretraining minimises, as sums over tokens: next-token cross-entropy plus the z-loss.

The denominator is the engine's. Shapes: B sequences, S positions, H hidden width.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from synpro_engine.data import IGNORE
from synpro_engine.model.model import Model
from synpro_engine.model.scoring import read_in_pipeline
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

    def over(self, microbatches: Sequence[LabelledBatch]) -> AbstractContextManager[LanguageModelLoss]:
        """Around one `Engine.step` with these micro-batches, which takes the loss function that is yielded."""
        return nullcontext(self)

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
    the student alone. In a pipeline they read a step's micro-batches before the student does, for its schedule has no
    room for theirs, and the last stage holds their hidden states until each is learnt from.
    """

    def __init__(self, z_loss: float, config: DistillConfig, teachers: Sequence[Model]) -> None:
        super().__init__(z_loss)
        assert len(teachers) == len(config.teachers), "each teacher that is named is there"
        self._config, self._teachers = config, teachers
        self._ahead: dict[int, list[Tensor]] = {}  # by the identity of a micro-batch, of each teacher

    @contextmanager
    def over(self, microbatches: Sequence[LabelledBatch]) -> Iterator[LanguageModelLoss]:
        """See `LanguageModelLoss`. Collective over a model replica."""
        for teacher in self._teachers if self._teachers[0].topology.pp.size > 1 else ():
            for batch, hidden_BSH in zip(microbatches, _read_ahead(teacher, microbatches), strict=False):
                self._ahead.setdefault(id(batch), []).append(hidden_BSH)
        try:
            yield self
        finally:
            self._ahead.clear()

    def __call__(self, model: Model, hidden_BSH: Tensor, batch: LabelledBatch) -> LossTerms:
        """See `LanguageModelLoss`; in a pipeline within `over`."""
        if model.topology.pp.size > 1:
            hidden = self._ahead.pop(id(batch))
        else:
            rows = documents_apart(batch, hidden_BSH.device)
            with torch.no_grad():
                hidden = [teacher.hidden(batch.tokens_BS, rows) for teacher in self._teachers]
        columns = hidden_BSH.size(1)
        read = [(teacher, own[:, :columns]) for teacher, own in zip(self._teachers, hidden, strict=True)]
        labels_BS = model.own_columns(batch.labels_BS)
        sums = model.distill_from_hidden(
            hidden_BSH, labels_BS, teachers=read, mixture=self._config.mixture,
            share=self._config.share, temperature=self._config.temperature, z_loss=self.z_loss,
        )  # fmt: skip
        extras = {"divergence": sums.divergence} | ({"z_loss": sums.z_loss} if self.z_loss else {})
        return LossTerms(objective=sums.loss, loss=sums.cross_entropy, extras=extras)


@torch.no_grad()
def _read_ahead(teacher: Model, microbatches: Sequence[LabelledBatch]) -> list[Tensor]:
    """Of each micro-batch the teacher's hidden states, on the last stage of its pipeline; [] on the others."""
    rows = [documents_apart(batch, teacher.topology.device) for batch in microbatches]
    passes = [(teacher.pad(batch.tokens_BS, own), own) for batch, own in zip(microbatches, rows, strict=True)]
    length = microbatches[0].tokens_BS.size(1)
    return read_in_pipeline(teacher, passes, lambda _, hidden_BSH: teacher.unpadded(hidden_BSH, length))


def count_labels(labels_BS: Tensor) -> Tensor:
    """Number of labels that are not ignored, int64 scalar where they are."""
    return torch.count_nonzero(labels_BS != IGNORE)
