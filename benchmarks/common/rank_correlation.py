"""Rank correlations with intervals. Knows numbers only."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
RESAMPLES = 1000


def spearman(one: ArrayLike, other: ArrayLike) -> float:
    """Rank correlation; 0 where one side is constant, which tells nothing of the other."""
    return _correlation(_ranks(_levels(one)), _ranks(_levels(other)))


def _levels(values: ArrayLike) -> NDArray[np.int64]:
    """Each value's place among the different ones."""
    return np.unique(np.asarray(values), return_inverse=True)[1]


def _ranks(levels: NDArray[np.int64]) -> Floats:
    """Ranks; equal values share the mean of theirs."""
    counts = np.bincount(levels)
    return (np.cumsum(counts) - 0.5 * (counts - 1.0))[levels]


def _correlation(one: Floats, other: Floats) -> float:
    a, b = one - one.mean(), other - other.mean()
    length = float(np.sqrt((a @ a) * (b @ b)))
    return float(a @ b) / length if length > 0.0 else 0.0


@dataclass(frozen=True, kw_only=True)
class Rho:
    """A rank correlation with its 95 % bootstrap interval (percentiles, resampling the pairs)."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def rho(one: ArrayLike, other: ArrayLike, *, seed: int = 0) -> Rho:
    """Spearman's rho with its interval."""
    a, b, rng = _levels(one), _levels(other), np.random.default_rng(seed)
    drawn = (rng.integers(len(a), size=len(a)) for _ in range(RESAMPLES))
    low, high = np.percentile([_correlation(_ranks(a[i]), _ranks(b[i])) for i in drawn], [2.5, 97.5])
    return Rho(value=spearman(one, other), low=float(low), high=float(high))


def rho_difference(one: ArrayLike, other: ArrayLike, truth: ArrayLike, *, seed: int = 0) -> Rho:
    """How much better `one` follows the truth than `other` does: the difference of their rhos, resampled together."""
    a, b, t, rng = _levels(one), _levels(other), _levels(truth), np.random.default_rng(seed)
    draws = []
    for i in (rng.integers(len(t), size=len(t)) for _ in range(RESAMPLES)):
        drawn = _ranks(t[i])
        draws.append(_correlation(_ranks(a[i]), drawn) - _correlation(_ranks(b[i]), drawn))
    low, high = np.percentile(draws, [2.5, 97.5])
    return Rho(value=spearman(one, truth) - spearman(other, truth), low=float(low), high=float(high))
