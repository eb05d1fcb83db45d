"""The stages of the run on one time axis. Times are in seconds."""

import math
from collections import Counter
from dataclasses import dataclass
from typing import Literal

StageStatus = Literal["done", "begun", "waiting"]
_NAMED = 8
"""Most stages of no arm that a sentence names."""


@dataclass(frozen=True, kw_only=True)
class StageTiming:
    """One stage of the run. `start` counts from the start of the run; without it stages are laid end to end."""

    name: str
    status: StageStatus
    arm: str | None = None
    """Of a run with arms: whose it is, where it is one's alone."""
    seconds: float | None = None
    start: float | None = None
    artifact: str | None = None  # directory, as the reader of the report should see it
    content_hash: str | None = None
    tokens_per_second: float | None = None

    @property
    def label(self) -> str:
        """The name, below that of its arm."""
        return self.name.removeprefix(f"arms/{self.arm}/")


@dataclass(frozen=True, kw_only=True)
class Bar:
    """A stage on the time axis; `left` and `width` in percent of the axis."""

    stage: StageTiming
    left: float
    width: float


@dataclass(frozen=True, kw_only=True)
class TimeAxis:
    """Bars of the stages, and the ticks below them as (percent of the axis, label)."""

    bars: tuple[Bar, ...]
    ticks: tuple[tuple[float, str], ...]

    @property
    def by_arm(self) -> dict[str, list[Bar]]:
        """The bars of each arm together, behind those of none, whose name is empty."""
        groups: dict[str, list[Bar]] = {"": []}
        for bar in self.bars:
            groups.setdefault(bar.stage.arm or "", []).append(bar)
        return groups


@dataclass(frozen=True, kw_only=True)
class Timeline:
    """The stages in the order they ran; those that are known but have no result yet stand among them."""

    stages: tuple[StageTiming, ...] = ()

    @property
    def total_seconds(self) -> float | None:
        """Time spent in the stages; None before the first one ends."""
        spent = [stage.seconds for stage in self.stages if stage.seconds is not None]
        return sum(spent) if spent else None

    @property
    def unfinished(self) -> list[StageTiming]:
        """The stages that have no result."""
        return [stage for stage in self.stages if stage.status != "done"]

    @property
    def waiting(self) -> list[StageTiming]:
        """Those of them that were not begun either."""
        return [stage for stage in self.stages if stage.status == "waiting"]

    @property
    def told_unfinished(self) -> str:
        """What has no result, as part of a sentence: stages by name, and of each arm how many."""
        own = [stage.name for stage in self.unfinished if stage.arm is None]
        of_arms = Counter(stage.arm for stage in self.unfinished if stage.arm is not None)
        names = own[:_NAMED] + ([f"{len(own) - _NAMED} more"] if len(own) > _NAMED else [])
        names += [f"{count} of arm {arm}" for arm, count in of_arms.items()]
        return f"{len(self.unfinished)} of {len(self.stages)} stages ({', '.join(names)})"

    @property
    def axis(self) -> TimeAxis:
        """Every stage that was begun, at its own start where that is known, else after the stage before."""
        spans: list[tuple[StageTiming, float, float]] = []
        end = 0.0
        for stage in (stage for stage in self.stages if stage.status != "waiting"):
            start = end if stage.start is None else stage.start
            spans.append((stage, start, stage.seconds or 0.0))
            end = max(end, start + (stage.seconds or 0.0))
        if end <= 0:
            return TimeAxis(bars=tuple(Bar(stage=stage, left=0, width=0) for stage, *_ in spans), ticks=())
        bars = tuple(Bar(stage=s, left=100 * start / end, width=100 * length / end) for s, start, length in spans)
        # A label at the very end of the axis would run into the column beside it.
        ticks = tuple((100 * at / end, _clock(at)) for at in nice_ticks(end) if at <= 0.96 * end)
        return TimeAxis(bars=bars, ticks=ticks)


def nice_ticks(end: float, most: int = 6) -> list[float]:
    """Round positions from 0 up to `end` seconds, about `most` of them at the most, in steps that a clock would use."""
    steps = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10800, 21600, 43200, 86400)
    step = next((size for size in steps if end / size <= most), math.ceil(end / most / 86400) * 86400)
    return [float(index * step) for index in range(int(end // step) + 1)]


def _clock(at: float) -> str:
    if at < 60 or at % 60:
        return f"{at:g} s" if at < 60 else f"{int(at) // 60}:{int(at) % 60:02d} min"
    return f"{at / 60:g} min" if at < 3600 else f"{at / 3600:g} h"
