"""Notices that the reference loss has stopped improving and says why in words.

It sees losses and steps only. A loss that rises is a plateau here; `divergence` decides whether training went wrong.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from synpro_engine.train.config import PlateauConfig
from synpro_engine.train.trend import LONGEST, SHORTEST, measure_fall


@dataclass(frozen=True, kw_only=True)
class PlateauDecision:
    """What ends the run now, if anything, why in one sentence, and the improvement per window that was judged."""

    kind: Literal["plateau", "budget"] | None
    """`plateau`: the loss no longer improves; `budget`: the detector's limit of steps or tokens; None: go on."""
    reason: str
    improvement: float | None = None
    """None while there are too few evaluations."""
    evaluations: int = 1
    """How many of the last ones were looked at."""

    @property
    def stop(self) -> bool:
        """Whether the run ends here, for either reason."""
        return self.kind is not None


class PlateauDetector:
    """Says after each evaluation whether the loss still improves, by the rule that the settings name.

    The budget is checked first, so that a run with a budget ends even if its loss still falls.
    """

    def __init__(self, config: PlateauConfig) -> None:
        self.config = config
        self._losses: list[float] = []
        self._misses = 0
        # No rule looks further back, and what is held stands in every checkpoint.
        self._most = LONGEST if config.rule == "slope" else 2 * config.window

    def update(self, step: int, loss: float, tokens: int = 0) -> PlateauDecision:
        """Take the loss (nats per token, finite or not) measured after `step` steps and `tokens` trained tokens."""
        # Losses that are not finite are kept too: the numbers of evaluations are the x of the line through them.
        self._losses = [*self._losses, loss][-self._most :]
        judge = _by_slope if self.config.rule == "slope" else _by_windows
        finding = judge(self._losses, self.config)
        # A spike or a NaN is neither a miss nor progress: it must not end a run, nor start the count anew.
        if finding.improvement is not None:
            # In a row: with every evaluation that asks, chance has another way to look like an end.
            self._misses = 0 if finding.progress else self._misses + 1
        kind, reason = self._decide(step, tokens, finding.summary)
        evaluations = finding.evaluations or len(self._losses)
        return PlateauDecision(kind=kind, reason=reason, improvement=finding.improvement, evaluations=evaluations)

    def spent(self, step: int, tokens: int) -> str | None:
        """Which limit so many steps or trained tokens reach, if any; it is time for a last evaluation then."""
        config = self.config
        if config.max_steps is not None and step >= config.max_steps:
            return f"budget: {step} steps reach the limit of {config.max_steps}"
        if config.max_tokens is not None and tokens >= config.max_tokens:
            return f"budget: {tokens} tokens reach the limit of {config.max_tokens}"
        return None

    def _decide(self, step: int, tokens: int, summary: str) -> tuple[Literal["plateau", "budget"] | None, str]:
        config = self.config
        if (budget := self.spent(step, tokens)) is not None:
            return "budget", budget
        if self._misses >= config.patience:
            times = "once" if self._misses == 1 else f"{self._misses} times in a row"
            return "plateau", f"plateau at step {step}: {summary}, {times}"
        return None, summary + (f", miss {self._misses} of {config.patience}" if self._misses else "")

    def state_dict(self) -> dict[str, Any]:
        """Plain data from which an interrupted run goes on deciding the same; null stands for a loss of NaN."""
        return {
            "losses": [loss if math.isfinite(loss) else None for loss in self._losses],
            "misses": self._misses,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        self._losses = [math.nan if loss is None else float(loss) for loss in state["losses"]]
        self._misses = int(state["misses"])


@dataclass(frozen=True, kw_only=True)
class _Finding:
    """Relative improvement a window of evaluations, whether it is progress, a summary, and on how many evaluations.

    Without an improvement nothing can be said at this evaluation, for or against.
    """

    summary: str
    improvement: float | None = None
    progress: bool = True
    evaluations: int = 0


def _by_slope(losses: Sequence[float], config: PlateauConfig) -> _Finding:
    """No progress where the whole interval of what a window of evaluations brings lies below what is wanted."""
    # Per evaluation, as the slope is. The setting is asked over a window, so that it reads the same for both rules.
    wanted = config.min_improvement / config.window
    fall = measure_fall(losses, wanted)
    if fall is None:
        return _Finding(summary=f"fewer than {SHORTEST} evaluations to judge by, or the last one is none")
    value, low, high = (config.window * share for share in (fall.value, fall.low, fall.high))
    summary = (
        f"over the last {fall.evaluations} evaluations the reference loss falls by {value:.3%} per {config.window}"
        f" (interval {low:.3%} to {high:.3%}, noise {fall.noise:.3%}; needed {config.min_improvement:.3%})"
    )
    # By the upper end: what can still be the wanted fall trains on. A straight line through a convex curve is steeper
    # than its end, so that errors too are on the side of training on.
    return _Finding(summary=summary, improvement=value, progress=fall.high >= wanted, evaluations=fall.evaluations)


def _by_windows(losses: Sequence[float], config: PlateauConfig) -> _Finding:
    """No progress where the mean of the last window is not enough below the mean of the one before it."""
    window = config.window
    if len(losses) < 2 * window:
        return _Finding(summary=f"{len(losses)} of the {2 * window} evaluations needed to judge")
    before, after = (math.fsum(part) / window for part in (losses[:window], losses[window:]))
    improvement = (before - after) / before
    if not math.isfinite(improvement):
        return _Finding(summary="an evaluation among those to judge by is not finite")
    summary = (
        f"mean reference loss of the last {window} evaluations improved by {improvement:.3%} on the {window} before"
        f" (needed {config.min_improvement:.3%})"
    )
    enough = improvement >= config.min_improvement
    return _Finding(summary=summary, improvement=improvement, progress=enough, evaluations=2 * window)
