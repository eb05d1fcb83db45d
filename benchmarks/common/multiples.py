"""Means over seeds, and what is missing of a study, as tables say it."""

from __future__ import annotations

import statistics
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from synpro_engine.report.numbers import half_interval


@dataclass(frozen=True, kw_only=True)
class Mean:
    """A mean over seeds. low, high: its 95 % interval by Student's t; None of one seed."""

    value: float
    low: float | None
    high: float | None


def mean(values: Sequence[float]) -> Mean:
    """The mean of the values and its interval."""
    middle = statistics.fmean(values)
    if len(values) == 1:
        return Mean(value=middle, low=None, high=None)
    half = half_interval(values)
    return Mean(value=middle, low=middle - half, high=middle + half)


def interval(found: Mean) -> str:
    """Its interval as text."""
    return "one seed" if found.low is None or found.high is None else f"{found.low:.3f} to {found.high:.3f}"


def on_record(done: Collection[tuple[str, int]], expected: Collection[tuple[str, int]]) -> list[str]:
    """How many trainings of a study there are, by arm and seed, and which are missing: a line each."""
    lines = [f"{len(done)} of {len({*done, *expected})} trainings are on record."]
    missing: dict[str, list[str]] = {}
    for arm, seed in expected:
        if (arm, seed) not in done:
            missing.setdefault(arm, []).append(str(seed))
    if not done:
        lines.append("So nothing is claimed here.")
    if missing:
        told = "; ".join(f"{arm} (seeds {', '.join(seeds)})" for arm, seeds in missing.items())
        lines.append(f"Missing: {told}.")
    return lines
