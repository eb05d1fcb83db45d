"""Steps whose loss or gradient is finite and yet far above those before: noticed before they change anything."""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Mapping
from typing import Any

from synpro_engine.train.config import SpikeConfig


class SpikeGuard:
    """Holds each step to the medians of the last ones. Equal on every rank, for losses and norms are."""

    def __init__(self, config: SpikeConfig) -> None:
        self._config = config
        self._losses: deque[float] = deque(maxlen=config.window)
        self._norms: deque[float] = deque(maxlen=config.window)

    def fault(self, loss: float, grad_norm: float) -> str | None:
        """What is too high in a step, if anything; None for the first `window` steps. Both are finite."""
        config = self._config
        if len(self._losses) < config.window:
            return None
        usual_loss, usual_norm = statistics.median(self._losses), statistics.median(self._norms)
        if loss > usual_loss + config.loss:
            return f"loss {loss:.4g} is more than {config.loss:g} above the last steps' median {usual_loss:.4g}"
        if grad_norm > config.norm * usual_norm:
            return (
                f"gradient norm {grad_norm:.4g} is over {config.norm:g} times the last steps' median {usual_norm:.4g}"
            )
        return None

    def add(self, loss: float, grad_norm: float) -> None:
        """Take a step, a spike too: where losses stay high, `pretrain.skip` ends the run."""
        if math.isfinite(loss) and math.isfinite(grad_norm):
            self._losses.append(loss)
            self._norms.append(grad_norm)

    def state_dict(self) -> dict[str, Any]:
        """Plain data from which an interrupted run goes on judging the same."""
        return {"losses": list(self._losses), "norms": list(self._norms)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what `state_dict` gave, of another window too."""
        for steps, values in ((self._losses, state["losses"]), (self._norms, state["norms"])):
            steps.clear()
            steps.extend(map(float, values))
