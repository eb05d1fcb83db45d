"""The slope of the loss along a direction by central differences: slow, to check the first-order estimates against.

It depends on no gradient code at all. Shares are by loss token, as those of two forwards.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from synpro_engine.influence.batching import sequence_logprobs
from synpro_engine.influence.directions import Direction, check_fits, check_has_length, displaced
from synpro_engine.influence.estimator import At, Remembered, SequenceScore, SharesBy, score_of
from synpro_engine.model.model import Model


class FiniteDifferenceInfluence:
    """(L(theta + h v) - L(theta - h v)) / 2h: central differences by two forwards, in any layout.

    A third one, between the two, gives the loss itself.

    Its error is of order h^2 |v|^2 from the third derivative, plus the rounding of two losses divided by 2h |I|. In
    fp32 a sequence's loss is good to some 1e-7 of itself, so at h = 0.1 scores far below 1e-4 nats are noise. In bf16
    two things make it useless: theta + h v rounds to 8 bits, so a step below about 1/500 of a weight is lost
    altogether, and the loss itself is good to 1e-2 or 1e-3, more than most scores. So half precision is refused.
    """

    shares_by: SharesBy = "loss token"

    def __init__(
        self,
        model: Model,
        direction: Direction,
        *,
        start_id: int,
        at: At = "theta",
        step: float = 0.1,
        micro_batch: int = 16,
        keep: int = 4096,
    ) -> None:
        """step: h, as a part of v. At the midpoint with h = 1/2 this is the influence of two forwards itself."""
        if model.dtype not in (torch.float32, torch.float64):
            raise ValueError(f"model: finite differences mean nothing in {model.dtype}; load the weights in fp32")
        if not step > 0:
            raise ValueError(f"step: expected > 0, got {step}")
        check_fits(model, direction)
        check_has_length(direction, "finite_difference")
        self._model, self._direction, self._step = model, direction, step
        self._start_id, self._micro_batch = start_id, micro_batch
        self._shift = -0.5 if at == "midpoint" else 0.0
        self._remembered = Remembered([model], self._measure, keep)

    def score(self, sequences: Sequence[Sequence[int]]) -> list[SequenceScore]:
        """See `Estimator.score`."""
        return self._remembered(sequences)

    def _measure(self, sequences: list[Sequence[int]]) -> list[SequenceScore]:
        above, here, below = (self._logprobs(sequences, self._shift + sign * self._step) for sign in (1.0, 0.0, -1.0))
        seq_len = self._model.config.seq_len
        return [
            score_of((low - high) / (2.0 * self._step), middle, seq_len)
            for high, middle, low in zip(above, here, below, strict=True)
        ]

    def _logprobs(self, sequences: list[Sequence[int]], scale: float) -> list[Tensor]:
        with displaced(self._model, self._direction, scale):
            return sequence_logprobs(self._model, sequences, start_id=self._start_id, micro_batch=self._micro_batch)
