"""From losses to multiples of text: the curve of untuned repetition over unique tokens, and where a loss lies on it."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from benchmarks.data_bound.arms import CURVE

# Two-sided 95 % quantiles of Student's t, by degrees of freedom.
_T = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}
Record = Mapping[str, Any]


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


def best(record: Record) -> float:
    """Loss on the validation split at the evaluation of the lowest loss on the reference split."""
    return min(record["curve"], key=lambda line: line["reference"])["validation"]


def end(record: Record) -> float:
    """Loss on the validation split after the last step."""
    return record["curve"][-1]["validation"]


def unique_curve(records: Sequence[Record]) -> list[tuple[float, float]]:
    """Unique tokens and the loss that untuned repetition has of them at best, from the fewest tokens to the most."""
    points = []
    for arm in CURVE:
        mine = [record for record in records if record.get("arm") == arm]
        if mine:
            points.append((float(mine[0]["unique_tokens"]), statistics.fmean(map(best, mine))))
    return points


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
