"""Slow estimators to check the fast ones against: forward mode, and finite differences.

Both give the derivative of every token's own loss, so their shares are by loss token, as those of two forwards.
Knows sequences and directions; the decoder that forward mode goes through is in `plain`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.autograd.forward_ad as forward_ad
from torch import Tensor
from torch.nn import Parameter

from synpro_engine.influence.direction import Direction, check_fits, check_has_length, displaced
from synpro_engine.influence.estimator import At, Remembered, SequenceScore, SharesBy, score_of
from synpro_engine.influence.plain import check_whole, plain_logprobs
from synpro_engine.influence.sequences import by_sequence, sequence_logprobs, window_batches
from synpro_engine.model.model import Model


class JvpInfluence:
    """<grad L(x), v> by one forward pass with dual numbers: exact up to rounding, which in fp64 is none to speak of.

    One process; all logits are held. It depends on none of the code that the capture runs on but the parameters.
    """

    shares_by: SharesBy = "loss token"

    def __init__(
        self,
        model: Model,
        direction: Direction,
        *,
        start_id: int,
        at: At = "theta",
        micro_batch: int = 16,
        dtype: torch.dtype = torch.float64,
        keep: int = 4096,
    ) -> None:
        """dtype: what is computed in, whatever the model is stored in. ValueError on a split model."""
        check_whole(model)
        check_fits(model, direction)
        if at == "midpoint":
            check_has_length(direction, "at: a midpoint")
        names = {parameter: name for name, parameter in model.named_parameters()}
        self._model, self._start_id, self._micro_batch, self._dtype = model, start_id, micro_batch, dtype
        self._tangents = {p: direction.tensors[name] for p, name in names.items() if name in direction.tensors}
        self._shift = -0.5 if at == "midpoint" else 0.0
        self._remembered = Remembered([model], self._measure, keep)

    def score(self, sequences: Sequence[Sequence[int]]) -> list[SequenceScore]:
        """See `Estimator.score`."""
        return self._remembered(sequences)

    def _measure(self, sequences: list[Sequence[int]]) -> list[SequenceScore]:
        batches = window_batches(
            sequences, start_id=self._start_id, seq_len=self._model.config.seq_len, micro_batch=self._micro_batch
        )
        values = [self._duals(batch.tokens_BS, batch.labels_BS) for batch in batches]
        parted = by_sequence([len(ids) for ids in sequences], batches, values, lead=(2,))
        seq_len = self._model.config.seq_len
        return [score_of(-tangent_T, logprob_T, seq_len) for logprob_T, tangent_T in parted]

    @torch.no_grad()
    def _duals(self, tokens_BS: Tensor, labels_BS: Tensor) -> Tensor:
        """Log-probabilities and their derivatives along v, [2, B, S]."""
        device = self._model.topology.device
        with forward_ad.dual_level():
            duals = {parameter: self._dual(parameter) for parameter in self._model.parameters()}
            logprob_BS = plain_logprobs(
                self._model, tokens_BS.to(device), labels_BS.to(device), lambda parameter: duals[parameter]
            )
            primal, tangent = forward_ad.unpack_dual(logprob_BS)
            return torch.stack([primal, torch.zeros_like(primal) if tangent is None else tangent])

    def _dual(self, parameter: Parameter) -> Tensor:
        value, tangent = parameter.to(self._dtype), self._tangents.get(parameter)
        if tangent is None:
            return value
        tangent = tangent.to(self._dtype)
        return forward_ad.make_dual(value + self._shift * tangent, tangent)


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
