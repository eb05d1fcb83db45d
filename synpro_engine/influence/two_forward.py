"""Influence as the difference of two losses, each from a forward pass: theta's and the probe's, or on either side.

Two forwards: I(x) = L(x; theta) - L(x; theta'), L being the mean token cross-entropy, without z-loss, over exactly the
tokens of x. Positive: what the probe learnt from the reference data also lowers the loss on x, so training on x should
help the reference (SynPro, arXiv 2605.17849).

Finite differences, the slope along a direction, are slow, to check the first-order estimates against: they depend on no
gradient code at all. The shares of both are by loss token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from synpro_engine.influence.batching import sequence_logprobs
from synpro_engine.influence.directions import Direction, check_fits, check_has_length, displaced
from synpro_engine.influence.estimator import At, Remembered, SequenceScore, SharesBy, score_of
from synpro_engine.model.model import Model
from synpro_engine.train.parking import Reading


class TwoForwardInfluence:
    """Scores sequences against one displacement theta -> theta' by a forward through each.

    theta, probe: models of one shape on one topology, whose weights must not change while this lives; or the probe as
    the direction theta - theta', so that the base is stored once (theta' then exists during a call only).
    """

    shares_by: SharesBy = "loss token"

    def __init__(
        self,
        theta: Model,
        probe: Model | Direction,
        *,
        start_id: int,
        micro_batch: int = 16,
        packed: bool = False,
        keep: int = 4096,
    ) -> None:
        """start_id: the id that separates documents, the context of a sequence's first token.

        packed: several sequences in a row of the model's length, for speed. keep: scores remembered for sequences that
        come again (a group's source, say); the oldest go first.
        """
        if isinstance(probe, Direction):
            check_fits(theta, probe)
            check_has_length(probe, "two_forward")
        elif theta.config != probe.config:
            raise ValueError("theta and probe must be models of the same configuration")
        self._theta, self._probe = theta, probe
        self._start_id, self._micro_batch, self._packed = start_id, micro_batch, packed
        models = [theta] if isinstance(probe, Direction) else [theta, probe]
        self._remembered = Remembered(models, self._measure, keep)

    @property
    def forwards(self) -> int:
        """Sequences that went through both models so far (a remembered one does not count again)."""
        return self._remembered.measured

    def score(self, sequences: Sequence[Sequence[int]]) -> list[SequenceScore]:
        """Score token-id sequences of any length; an empty sequence scores 0 with 0 tokens."""
        return self._remembered(sequences)

    def reads(self) -> Reading:
        """See `Estimator.reads`."""
        if isinstance(self._probe, Direction):
            return Reading((self._theta,), tuple(self._probe.tensors.values()))
        return Reading((self._theta, self._probe))

    def _measure(self, sequences: list[Sequence[int]]) -> list[SequenceScore]:
        # All batches at theta before any at theta': a direction is then added to the weights once a call.
        at_theta = self._logprobs(self._theta, sequences)
        if isinstance(self._probe, Direction):
            with displaced(self._theta, self._probe, -1.0):
                at_probe = self._logprobs(self._theta, sequences)
        else:
            at_probe = self._logprobs(self._probe, sequences)
        seq_len = self._theta.config.seq_len
        scores = []
        for theta_T, probe_T in zip(at_theta, at_probe, strict=True):
            # Losses are minus log-probabilities, hence this order; fp64 by now, for the difference is small beside
            # either.
            score = score_of(probe_T - theta_T, theta_T, seq_len)
            loss_probe = -probe_T.mean().item() if len(probe_T) else 0.0
            # By its definition, the difference of two means: the sum of the shares rounds otherwise.
            scores.append(replace(score, value=score.loss - loss_probe))
        return scores

    def _logprobs(self, model: Model, sequences: list[Sequence[int]]) -> list[Tensor]:
        return sequence_logprobs(
            model, sequences, start_id=self._start_id, micro_batch=self._micro_batch, packed=self._packed
        )


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
        # In bf16 even two forwards are off by 39 % at 0.1 % of theta's length, and noise at 0.025 %
        # (docs/influence.md).
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

    def reads(self) -> Reading:
        """See `Estimator.reads`."""
        return Reading((self._model,), tuple(self._direction.tensors.values()))

    def _measure(self, sequences: list[Sequence[int]]) -> list[SequenceScore]:
        above, here, below = (self._logprobs(sequences, self._shift + sign * self._step) for sign in (1.0, 0.0, -1.0))
        seq_len = self._model.config.seq_len
        return [
            # Losses are minus log-probabilities, hence low less high; the middle pass gives the loss at the point
            # itself.
            score_of((low - high) / (2.0 * self._step), middle, seq_len)
            for high, middle, low in zip(above, here, below, strict=True)
        ]

    def _logprobs(self, sequences: list[Sequence[int]], scale: float) -> list[Tensor]:
        with displaced(self._model, self._direction, scale):
            return sequence_logprobs(self._model, sequences, start_id=self._start_id, micro_batch=self._micro_batch)
