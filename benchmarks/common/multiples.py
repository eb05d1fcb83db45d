"""Means over seeds, and what losses are worth in unique text, as tables say it."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from synpro_engine.evaluate.effective_tokens import READINGS, UniqueCurve, effective_multiple

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


def interval(found: Mean) -> str:
    """Its interval as text."""
    return "one seed" if found.low is None or found.high is None else f"{found.low:.3f} to {found.high:.3f}"


def multiples(losses: Sequence[float], curve: UniqueCurve) -> list[str]:
    """What losses by seed are worth by each reading of the curve that its sizes allow, in the order of `READINGS`."""
    readings = READINGS.values()
    if len(curve.tokens) < 3:  # too few for a power law
        return ["" for _ in readings]
    return [effective_multiple(curve, losses, reading).told(curve) for reading in readings]
