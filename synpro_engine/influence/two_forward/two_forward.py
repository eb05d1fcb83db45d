"""Influence of token sequences by two forwards: I(x) = L(x; theta) - L(x; theta').

L is the mean token cross-entropy, without z-loss, over exactly the tokens of x. Positive: what the probe
learnt from the reference data also lowers the loss on x, so training on x should help the reference
(SynPro, arXiv 2605.17849).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor

from synpro_engine.influence.batching import sequence_logprobs
from synpro_engine.influence.directions import Direction, check_fits, check_has_length, displaced
from synpro_engine.influence.estimator import Remembered, SequenceScore, SharesBy, score_of
from synpro_engine.model.model import Model


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

    def _measure(self, sequences: list[Sequence[int]]) -> list[SequenceScore]:
        at_theta = self._logprobs(self._theta, sequences)
        if isinstance(self._probe, Direction):
            with displaced(self._theta, self._probe, -1.0):
                at_probe = self._logprobs(self._theta, sequences)
        else:
            at_probe = self._logprobs(self._probe, sequences)
        seq_len = self._theta.config.seq_len
        return [_score(before_T, after_T, seq_len) for before_T, after_T in zip(at_theta, at_probe, strict=True)]

    def _logprobs(self, model: Model, sequences: list[Sequence[int]]) -> list[Tensor]:
        return sequence_logprobs(
            model, sequences, start_id=self._start_id, micro_batch=self._micro_batch, packed=self._packed
        )


def _score(theta_T: Tensor, probe_T: Tensor, seq_len: int) -> SequenceScore:
    """From log-probabilities of the tokens under theta and under the probe, float64 [tokens]."""
    score = score_of(probe_T - theta_T, theta_T, seq_len)
    loss_probe = -probe_T.mean().item() if len(probe_T) else 0.0
    return replace(score, value=score.loss - loss_probe)
