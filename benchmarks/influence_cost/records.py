"""Ratios of times in one run: contenders take turns, and each turn gives a ratio of its own.

Knows samples, rows and the table; not what is measured. A row whose scores are wrong has times and no ratio.
"""

from __future__ import annotations

import math
import os
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from benchmarks.common import harness
from benchmarks.common.environment import ForeignLoad
from benchmarks.common.harness import Sample, Step
from benchmarks.common.records import Ask, Row
from benchmarks.common.tables import markdown
from benchmarks.influence_cost.setup import Bench

BENCH = "influence_cost"
HEADINGS = ("what", "over", "measured (quartiles)", "CPU time", "by arithmetic", "asked", "met")


@dataclass(frozen=True, kw_only=True)
class Spread:
    """Median and quartiles of one value a turn."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Raises ValueError where there is none."""
        low, median, high = harness.quartiles(values)
        return cls(median=median, low=low, high=high)

    def __str__(self) -> str:
        digits = 3 if self.median < 1.5 else 2
        counted = self.low == self.high
        spread = "" if counted else f" ({self.low:.{digits}f} to {self.high:.{digits}f})"
        return f"{self.median:.{digits}f}x{spread}"


@dataclass(frozen=True, kw_only=True)
class CostRow(Row):
    """A ratio of `contender` to `against`; or of `against` to `contender`, where this is a gain (`at_least`).

    `passes` names the part of the benchmark, `computes` says what was done and how often.
    """

    against: str
    ratio: Spread | None = None
    cpu_ratio: float | None = None
    """The same of CPU time, all processes of the benchmark together; None where the ratio is not one of two times."""
    arithmetic: float | None = None
    """What the ratio would be if only products with weights took time."""
    limit: float | None = None
    at_least: bool = False
    baseline: harness.Timing | None = None
    counts: Mapping[str, float] = field(default_factory=dict)

    @property
    def ask(self) -> Ask | None:
        """The demand, where there is one."""
        if self.limit is None:
            return None
        figure = self.ratio.median if self.ratio else None
        return Ask(text=self.contender, figure=figure, limit=self.limit, at_least=self.at_least, unit="x")


@dataclass(frozen=True, kw_only=True)
class Turns:
    """Samples of contenders that took turns, and the share of the machine that other processes took meanwhile."""

    part: str
    samples: Mapping[str, Sequence[Sample]]
    foreign: float

    def ratios(self, over: str, under: str) -> list[float]:
        """Seconds of `over` over those of `under`, turn by turn."""
        pairs = zip(self.samples[over], self.samples[under], strict=True)
        return [one.seconds / other.seconds for one, other in pairs]

    def cpu_ratio(self, over: str, under: str) -> float | None:
        """Median of the same of CPU seconds."""
        pairs = list(zip(self.samples[over], self.samples[under], strict=True))
        if not all(other.cpu_seconds for _, other in pairs):  # shorter than the clock's tick
            return None
        return statistics.median(one.cpu_seconds / other.cpu_seconds for one, other in pairs)

    def timing(self, name: str) -> harness.Timing:
        """Median and quartiles of a contender's seconds."""
        return harness.summarise(self.samples[name])

    def row(
        self,
        contender: str,
        against: str,
        computes: str,
        *,
        wrong: str | None = None,
        ratios: Sequence[float] | None = None,
        at_least: bool = False,
        limit: float | None = None,
        arithmetic: float | None = None,
        flops: float | None = None,
        counts: Mapping[str, float] | None = None,
    ) -> CostRow:
        """The row of two contenders. wrong: why its scores are. ratios: other ones than those of the two times."""
        over, under = (against, contender) if at_least else (contender, against)
        values = self.ratios(over, under) if ratios is None else ratios
        timing = self.timing(contender) if contender in self.samples else None
        return CostRow(
            bench=BENCH,
            contender=contender,
            against=against,
            passes=self.part,
            computes=computes,
            status="wrong" if wrong else "ok",
            reason=wrong,
            timing=timing,
            baseline=self.timing(against),
            ratio=None if wrong else Spread.of(values),
            cpu_ratio=self.cpu_ratio(over, under) if ratios is None and not wrong else None,
            at_least=at_least,
            limit=limit,
            arithmetic=arithmetic,
            flops=flops,
            tflops=flops / timing.median / 1e12 if flops and timing else None,
            counts=counts or {},
            environment={"foreign_cpu_share": self.foreign},
        )


def take_turns(
    bench: Bench, part: str, steps: Mapping[str, Step], *, companion: Callable[[], float] = lambda: 0.0
) -> Turns:
    """Time the steps in turns. companion: CPU seconds so far of another process that works for one of them."""
    settings, clock = bench.settings, harness.clock_for(bench.topology.device)

    def both(step: Step, turn: int) -> Sample:
        before = companion()
        sample = clock(step, turn)
        return replace(sample, cpu_seconds=sample.cpu_seconds + companion() - before)

    begun, before, load = time.perf_counter(), companion(), ForeignLoad()
    samples = harness.interleave(
        steps,
        both,
        rounds=settings.rounds,
        warmups=settings.warmups,
        progress=lambda text: bench.say(f"{part}: {text}"),
    )
    ours = (companion() - before) / ((time.perf_counter() - begun) * (os.cpu_count() or 1))
    return Turns(part=part, samples=samples, foreign=round(max(0.0, load.share() - ours), 3))


def differing(found: Sequence[float], true: Sequence[float], tolerance: float) -> str | None:
    """Why scores are wrong (the largest absolute difference passes `tolerance`), or None. All scores 0 is wrong too."""
    off = [abs(one - other) for one, other in zip(found, true, strict=True)]
    worst = max(off, key=lambda difference: (math.isnan(difference), difference))
    if not worst <= tolerance:
        return f"a score is off by {worst:.1e}, more than {tolerance:.1e}"
    if max(map(abs, true)) <= 10 * tolerance:
        return f"every score is below {10 * tolerance:.1e}: nothing to tell"
    return None


# ---- for people ------------------------------------------------------------------------------------------------------


def table(rows: Iterable[CostRow]) -> str:
    """Markdown: what was measured, what was asked, and whether that is met."""
    return markdown(HEADINGS, map(_cells, rows))


def _cells(row: CostRow) -> tuple[str, ...]:
    ask = row.ask
    asked = "" if ask is None else f"{'>=' if ask.at_least else '<='} {ask.limit:g}x"
    met = "" if ask is None else ("yes" if ask.reached else "**no**")
    measured = str(row.ratio) if row.ratio else f"WRONG: {row.reason}"
    over = f"{row.against}, gain" if row.at_least else row.against
    return row.contender, over, measured, _times(row.cpu_ratio), _times(row.arithmetic), asked, met


def _times(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}x"
