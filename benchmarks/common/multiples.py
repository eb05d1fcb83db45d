"""From losses to multiples of text: the curve of untuned repetition over unique tokens, and where a loss lies on it."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

# Two-sided 95 % quantiles of Student's t, by degrees of freedom.
_T = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}


@dataclass(frozen=True, kw_only=True)
class Mean:
    """A mean over seeds. low, high: its 95 % interval by Student's t; None of one seed."""

    value: float
    low: float | None
    high: float | None


def mean(values: Sequence[float]) -> Mean:
    """The mean of up to ten values and its interval."""
    middle = statistics.fmean(values)
    if len(values) == 1:
        return Mean(value=middle, low=None, high=None)
    half = _T[len(values) - 1] * statistics.stdev(values) / math.sqrt(len(values))
    return Mean(value=middle, low=middle - half, high=middle + half)


def multiple(loss: float, curve: Sequence[tuple[float, float]]) -> str:
    """For how many times the first point's tokens the curve has that loss: linear in the logarithm of tokens.

    Beyond the curve it is not known, and said to be above or below its end.
    """
    first = curve[0][0]
    if loss > curve[0][1]:
        return "< 1"
    for (tokens, high), (more, low) in pairwise(curve):
        if high >= loss >= low:
            done = (high - loss) / (high - low) if high > low else 0.0
            return f"{tokens * (more / tokens) ** done / first:.2f}"
    return f"> {curve[-1][0] / first:.1f}"


def interval(found: Mean) -> str:
    """Its interval as text."""
    return "one seed" if found.low is None or found.high is None else f"{found.low:.3f} to {found.high:.3f}"


def multiples(found: Mean, curve: Sequence[tuple[float, float]]) -> tuple[str, str]:
    """The multiple of a mean loss, and those of the ends of its interval, the lower multiple first."""
    if found.low is None or found.high is None:
        return multiple(found.value, curve), "one seed"
    return multiple(found.value, curve), f"{multiple(found.high, curve)} to {multiple(found.low, curve)}"
