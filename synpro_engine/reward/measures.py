"""What a judge's values are worth: AUC and its interval, calibration, and how many of the true are kept.

Shape suffixes: N pairs, T true ones, F false ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
BINS = 10
_DRAWS = 400
_OUTSIDE = 2.5  # percent on either side of an interval


def balanced(labels_N: Array, weights_N: Array) -> Array:
    """The weights scaled so that true and false pairs sum to a half each."""
    of_true, of_false = weights_N[labels_N == 1].sum(), weights_N[labels_N == 0].sum()
    return np.where(labels_N == 1, weights_N / of_true, weights_N / of_false) / 2


def auc(true: Sequence[float] | Array, false: Sequence[float] | Array) -> float:
    """Chance that a true pair is rated above a false one; ties count half."""
    ordered, true_T = np.sort(np.asarray(false)), np.asarray(true)
    below = np.searchsorted(ordered, true_T, "left") + np.searchsorted(ordered, true_T, "right")
    return float(below.mean() / (2 * len(ordered)))


def auc_interval(
    true: Sequence[float] | Array, false: Sequence[float] | Array, of_true: Sequence[str], of_false: Sequence[str]
) -> tuple[float, float]:
    """The 95 % interval of `auc` by the bootstrap over sources (Efron 1979), whose pairs stand or fall together.

    of_true, of_false: each pair's source. One source has no interval: it is 0 to 1.
    """
    sources = {source: place for place, source in enumerate(dict.fromkeys([*of_true, *of_false]))}
    own_T, own_F = (np.array([sources[each] for each in of]) for of in (of_true, of_false))
    order = np.argsort(np.asarray(false), kind="stable")
    ordered, own_F = np.asarray(false)[order], own_F[order]
    below_T, upto_T = (np.searchsorted(ordered, np.asarray(true), side) for side in ("left", "right"))
    chance = np.random.default_rng(0)
    values: list[float] = []
    for _ in range(_DRAWS if len(sources) > 1 else 0):
        drawn = np.bincount(chance.integers(len(sources), size=len(sources)), minlength=len(sources))
        rank = np.concatenate([[0.0], np.cumsum(drawn[own_F])])
        weights_T = drawn[own_T]
        # Where no true or no false one was drawn there is nothing to compare.
        if (pairs := weights_T.sum() * rank[-1]) > 0:
            values.append(float((weights_T * (rank[below_T] + rank[upto_T])).sum() / (2 * pairs)))
    if not values:
        return 0.0, 1.0
    low, high = np.percentile(values, [_OUTSIDE, 100 - _OUTSIDE])
    return float(low), float(high)


class Bin(NamedTuple):
    """Pairs whose probability lies in one tenth of the way from 0 to 1; shares are with true and false at par."""

    pairs: int
    said: float
    """Mean probability."""
    found: float
    """Share of true ones."""
    weight: float
    """Share of all pairs."""


def calibration_bins(p_N: Array, labels_N: Array, weights_N: Array) -> list[Bin]:
    """The tenths that have pairs, from below: a calibrated judge's `found` is its `said`."""
    weights_N = balanced(labels_N, weights_N)
    place_N = np.minimum((p_N * BINS).astype(np.int64), BINS - 1)
    found: list[Bin] = []
    for each in range(BINS):
        inside_N = place_N == each
        if inside_N.any():
            weight = weights_N[inside_N].sum()
            said, true = (float((weights_N * of_N)[inside_N].sum() / weight) for of_N in (p_N, labels_N))
            found.append(Bin(int(inside_N.sum()), said, true, float(weight)))
    return found


def calibration_error(p_N: Array, labels_N: Array, weights_N: Array) -> float:
    """Expected calibration error over ten bins of equal width (Naeini et al. 2015), true and false at par."""
    return sum(each.weight * abs(each.said - each.found) for each in calibration_bins(p_N, labels_N, weights_N))


def share_kept(true: Array, false: Array, let_through: float = 0.1) -> tuple[float, float]:
    """(threshold that at most `let_through` of the false ones reach, share of the true ones that do)."""
    threshold = float(np.quantile(false, 1 - let_through, method="higher"))
    threshold = float(np.nextafter(threshold, 2.0))
    return threshold, float((np.asarray(true) >= threshold).mean())
