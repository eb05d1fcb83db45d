"""What every influence estimator takes and gives: token sequences in, a score for each and for each of its tokens out.

The estimators are in `first_order` (by capture, in forward mode) and `two_forward` (and finite differences).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, Literal, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from synpro_engine.model.model import Model
from synpro_engine.train.parking import Reading

T = TypeVar("T")
At = Literal["theta", "midpoint"]
"""Where a first-order estimate is taken: at theta, or at theta - v/2, which makes its error third order in v.

The midpoint is for displacements; a bare gradient has no length that means a step, so take it at theta."""
SharesBy = Literal["loss token", "site"]
"""What a token's share is. `loss token`: how much this token's own loss moves. `site`: what the layers contribute at
the position that predicts this token, whichever token's loss the gradient there comes from. Both sum to the score."""


@dataclass(frozen=True, kw_only=True)
class SequenceScore:
    """The influence of one sequence, in nats per token: I(x) = L(x; theta) - L(x; theta'), or an estimate of it."""

    value: float
    tokens: int
    windows: int
    """Pieces of at most the model's length that the sequence was cut into; none sees what stands before it."""
    shares: tuple[float, ...]
    """Each token's part of `value`; they sum to it."""
    loss: float
    """L(x), mean cross-entropy in nats per token, at theta (at the midpoint where the estimate is taken there)."""
    others: Mapping[str, float] = field(default_factory=dict)
    """The influence along further directions, by name, where the estimator was given such."""


class Estimator(Protocol):
    """Scores sequences of token ids against a displacement.

    The models' weights must not change while it lives. Every rank of the tensor and pipeline axes must call `score`
    with the same sequences; data-parallel ranks may score different ones. A score depends on its sequence alone.
    """

    shares_by: SharesBy

    def score(self, sequences: Sequence[Sequence[int]]) -> Sequence[SequenceScore]:
        """Scores of token-id sequences of any length; an empty sequence scores 0 with 0 tokens."""
        ...

    def reads(self) -> Reading:
        """The models and directions that `score` reads."""
        ...


class Remembered(Generic[T]):
    """Values of sequences, measured once each; the `keep` newest are remembered."""

    def __init__(self, models: Sequence[Model], measure: Callable[[list[Sequence[int]]], list[T]], keep: int) -> None:
        """`models` decide the values: a change of their weights makes every later call an error."""
        self._models, self._measure, self._keep = models, measure, keep
        self._values: dict[bytes, T] = {}
        self._fingerprint = self._weights()
        self.measured = 0
        """Sequences measured so far (a remembered one does not count again)."""

    def _weights(self) -> list[float]:
        """Sums over some hundred entries of every parameter: an optimizer step moves them, whatever wrote it.

        (A tensor's version counter does not see writes through another view of its storage, as optimizers make.)
        """
        # Some 256 entries of each: reading whole models at every call would take a pass over memory for a check.
        parameters = [p.detach().flatten() for model in self._models for p in model.parameters()]
        return torch.stack([p[:: max(1, len(p) // 256)].double().sum() for p in parameters]).tolist()

    def __call__(self, sequences: Sequence[Sequence[int]]) -> list[T]:
        """The value of each sequence."""
        # Compared exactly: equal weights give equal sums, in the same order on the same device.
        if self._weights() != self._fingerprint:
            raise RuntimeError("the weights changed since this estimator was made: its kept scores are stale")
        # Through int64 bytes, lists, tuples and arrays of the same ids are one key; a key is 64 bytes, whatever the
        # length.
        keys = [hashlib.blake2b(np.asarray(ids, dtype=np.int64).tobytes()).digest() for ids in sequences]
        unknown = {key: ids for key, ids in zip(keys, sequences, strict=True) if key not in self._values}
        # Alike on all ranks of a model, which are called with the same sequences: measuring is collective.
        if unknown:
            self._values.update(zip(unknown, self._measure(list(unknown.values())), strict=True))
            self.measured += len(unknown)
        values = [self._values[key] for key in keys]
        # Dropped only now: one call may bring more sequences than are kept, and its values are read first.
        for key in list(self._values)[: max(0, len(self._values) - self._keep)]:
            del self._values[key]
        return values


def score_of(shares_T: Tensor, logprob_T: Tensor, seq_len: int) -> SequenceScore:
    """From shares in the *sum* of the tokens' losses, and the tokens' log-probabilities, both float64 [tokens].

    seq_len: tokens of a window. Every token weighs the same, in whichever window it is.
    """
    tokens = len(shares_T)
    if not tokens:
        return SequenceScore(value=0.0, tokens=0, windows=0, shares=(), loss=0.0)
    shares = shares_T / tokens
    return SequenceScore(
        value=shares.sum().item(),
        tokens=tokens,
        windows=math.ceil(tokens / seq_len),
        shares=tuple(shares.tolist()),
        loss=-logprob_T.mean().item(),
    )
