"""Notices that the reference loss has stopped improving and says why in words.

Knows a sequence of (step, loss); does not know models, data, or what happens after a plateau.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from synpro_engine.train.config import PlateauConfig


@dataclass(frozen=True, kw_only=True)
class PlateauDecision:
    """What ends the run now, if anything, why in one sentence, and the relative improvement that was judged."""

    kind: Literal["plateau", "budget"] | None
    """`plateau`: the loss no longer improves; `budget`: the detector's limit of steps or tokens; None: go on."""
    reason: str
    improvement: float | None = None
    """None while there are too few evaluations."""

    @property
    def stop(self) -> bool:
        """Whether the run ends here, for either reason."""
        return self.kind is not None


class PlateauDetector:
    """Compares the mean of the last `window` losses with the mean of the `window` before them.

    Means over a window rather than single losses, because evaluation noise of the order of the improvement would end
    a run at random. The budget is checked first, so that a run with a budget ends even if its loss still falls.
    """

    def __init__(self, config: PlateauConfig) -> None:
        self.config = config
        self._losses: list[float] = []
        self._misses = 0

    def update(self, step: int, loss: float, tokens: int = 0) -> PlateauDecision:
        """Take the loss (nats per token) measured after `step` steps and `tokens` trained tokens."""
        self._losses = [*self._losses, loss][-2 * self.config.window :]
        improvement = self._improvement()
        if improvement is not None:
            self._misses = 0 if improvement >= self.config.min_improvement else self._misses + 1
        kind, reason = self._judge(step, tokens, improvement)
        return PlateauDecision(kind=kind, reason=reason, improvement=improvement)

    def _improvement(self) -> float | None:
        window = self.config.window
        if len(self._losses) < 2 * window:
            return None
        before = math.fsum(self._losses[:window]) / window
        after = math.fsum(self._losses[window:]) / window
        if not (math.isfinite(before) and math.isfinite(after)) or before == 0:
            return -math.inf  # a diverged run makes no progress
        return (before - after) / abs(before)

    def _judge(
        self, step: int, tokens: int, improvement: float | None
    ) -> tuple[Literal["plateau", "budget"] | None, str]:
        config = self.config
        if config.max_steps is not None and step >= config.max_steps:
            return "budget", f"budget: {step} steps reach the limit of {config.max_steps}"
        if config.max_tokens is not None and tokens >= config.max_tokens:
            return "budget", f"budget: {tokens} tokens reach the limit of {config.max_tokens}"
        if improvement is None:
            return None, f"{len(self._losses)} of the {2 * config.window} evaluations needed to judge"
        compared = (
            f"mean reference loss of the last {config.window} evaluations improved by {improvement:.3%} "
            f"on the {config.window} before (needed {config.min_improvement:.3%})"
        )
        if self._misses >= config.patience:
            times = "once" if self._misses == 1 else f"{self._misses} times in a row"
            return "plateau", f"plateau at step {step}: {compared}, {times}"
        return None, compared + (f", miss {self._misses} of {config.patience}" if self._misses else "")

    def state_dict(self) -> dict[str, Any]:
        """Plain data from which an interrupted run goes on deciding the same."""
        return {"losses": list(self._losses), "misses": self._misses}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        self._losses = [float(loss) for loss in state["losses"]]
        self._misses = int(state["misses"])
