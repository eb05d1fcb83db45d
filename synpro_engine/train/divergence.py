"""Notices that training has gone wrong, and ends it with a line that says where and what to change.

Two ways: steps whose loss or gradient is not finite, which change nothing and are skipped, become too many; or the loss
leaves all bounds for several evaluations.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from synpro_engine.config import UserError
from synpro_engine.train.config import DivergenceConfig, SkipConfig, TrainConfig

LR_KEY = "pretrain.optimizer.lr"
TRAINING = "training"
"""The mean loss of the last `RECENT` steps, beside those of held-out sets."""
RECENT = 8
"""One step's batch may be easy or hard by more than the bounds allow; and training that goes wrong late in a long
interval between evaluations must show in what is held to them, so not the whole interval."""


class DivergedError(UserError):
    """Training has diverged."""


@dataclass(kw_only=True)
class SkipGuard:
    """Counts skipped steps; DivergedError at the one that is too many.

    what: named in the message, as in `pretrain`. lr_key: the setting to lower. Equal on every rank, for steps are.
    """

    what: str
    lr_key: str
    config: SkipConfig = field(default_factory=SkipConfig)
    in_row: int = 0
    in_all: int = 0
    finite: tuple[int, float] | None = None
    """The last step that was made and its loss."""

    def add(self, step: int, loss: float, grad_norm: float, lr: float, *, skipped: bool) -> None:
        """Take one step's outcome."""
        if not skipped:
            self.in_row, self.finite = 0, (step, loss)
            return
        self.in_row, self.in_all = self.in_row + 1, self.in_all + 1
        limits = self.config
        if self.in_row > limits.max_in_row:
            why = f"{self.in_row} steps in a row were skipped (`max_in_row` is {limits.max_in_row})"
        elif self.in_all > limits.max_in_all:
            why = f"{self.in_all} steps in all were skipped (`max_in_all` is {limits.max_in_all})"
        else:
            return
        raise DivergedError(
            f"{self.what} diverged at step {step}: {why}, loss {loss:.4g} and gradient norm {grad_norm:.4g} here"
            f" ({self._before()}); lower `{self.lr_key}` ({lr:.3g} here) or warm up longer"
        )

    def end(self) -> None:
        """The last step was taken; DivergedError where it was skipped: nothing afterwards shows that all is well."""
        if self.in_row:
            raise DivergedError(
                f"{self.what} diverged: it ends with {self.in_row} skipped step(s), {self._before()};"
                f" lower `{self.lr_key}` or warm up longer"
            )

    def _before(self) -> str:
        if self.finite is None:
            return "no step was made before"
        return "last made: step {}, loss {:.4g}".format(*self.finite)

    def state_dict(self) -> dict[str, Any]:
        """Plain data from which an interrupted run goes on counting."""
        return {"in_row": self.in_row, "in_all": self.in_all, "finite": self.finite}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        self.in_row, self.in_all = int(state["in_row"]), int(state["in_all"])
        self.finite = None if state["finite"] is None else (int(state["finite"][0]), float(state["finite"][1]))


@dataclass(kw_only=True)
class LossGuard:
    """Watches evaluated losses.

    One is out of bounds where it is `rise` nats above the best so far, or above both the best and that of uniform
    guessing, ln V. Evaluation and training must both be so, each measured against its own best: a model that only
    overfits has a low training loss. A held-out loss that is not finite is out of bounds whatever the others are: a run
    must not end as if well with a result that is none.
    """

    config: DivergenceConfig
    uniform: float
    """ln of the vocabulary's size, nats."""
    best: dict[str, float] = field(default_factory=dict)
    in_row: int = 0

    def add(self, losses: Mapping[str, float]) -> bool:
        """Take one evaluation's losses by name, nats per token; whether they are out of bounds."""
        # Not the training loss: one bad batch makes it NaN, and that step was skipped and is counted elsewhere.
        broken = any(not math.isfinite(loss) for name, loss in losses.items() if name != TRAINING)
        # Judged before they are taken in: a loss is measured against those before it.
        out = broken or (bool(losses) and all(self._out_of_bounds(name, loss) for name, loss in losses.items()))
        for name, loss in losses.items():
            self.see(name, loss)
        self.in_row = self.in_row + 1 if out else 0
        return out

    def see(self, name: str, loss: float) -> None:
        """Take a loss that may be the best of its name."""
        if math.isfinite(loss):
            self.best[name] = min(loss, self.best.get(name, math.inf))

    def fault(self, step: int, losses: Mapping[str, float], *, last: bool) -> str | None:
        """What to say if the run has to end now; `last`: it ends anyway, so there is nothing to wait for."""
        if self.in_row < (1 if last else self.config.evaluations):
            return None
        shown = ", ".join(f"{name} loss {loss:.4g}" for name, loss in losses.items())
        best = ", ".join(f"{name} {loss:.4g}" for name, loss in self.best.items()) or "none finite"
        times = "the last evaluation is" if self.in_row == 1 else f"{self.in_row} evaluations in a row are"
        return f"diverged at step {step}: {shown}; {times} out of bounds (best: {best}; guessing: {self.uniform:.4g})"

    def _out_of_bounds(self, name: str, loss: float) -> bool:
        best = self.best.get(name, math.inf)
        # A hundredth: a run begins about ln V, and the losses of a slow start tremble.
        return not math.isfinite(loss) or loss > min(best + self.config.rise, max(self.uniform, 1.01 * best))

    def state_dict(self) -> dict[str, Any]:
        """Plain data from which an interrupted run goes on judging the same."""
        return {"best": dict(self.best), "in_row": self.in_row}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        self.best, self.in_row = dict(state["best"]), int(state["in_row"])


class PretrainGuard:
    """Both guards of a pretraining run, as its settings want them."""

    def __init__(self, config: TrainConfig, vocab_size: int) -> None:
        self.skips = SkipGuard(what="training", lr_key=LR_KEY, config=config.skip)
        uniform = math.log(vocab_size)
        self._bounds = None if config.divergence is None else LossGuard(config=config.divergence, uniform=uniform)
        self._config, self._lr = config.divergence, config.optimizer.lr
        self._measured: dict[str, float] = {}
        self._recent: deque[float] = deque(maxlen=RECENT)
        self._since: tuple[float, int] = (0.0, 0)
        """Sum and number of training losses since the last evaluation."""
        self._means: dict[str, float] = {}
        """Like `_measured`, but of training the mean since the evaluation before; and the lowest of each so far."""
        self._lowest: dict[str, float] = {}

    def add_step(
        self, step: int, loss: float, grad_norm: float, lr: float, *, skipped: bool, labelled: bool = True
    ) -> None:
        """Take one step's outcome; DivergedError where too many were skipped.

        labelled: whether its batch had labels; without any its loss is 0 and says nothing.
        """
        if labelled:
            self._take_loss(loss)
        self.skips.add(step, loss, grad_norm, lr, skipped=skipped)

    def _take_loss(self, loss: float) -> None:
        if math.isfinite(loss):
            # One step's loss is too noisy to compare with a plateau's: its batch may be easy or
            # hard by more than plateau_rise.
            self._since = (self._since[0] + loss, self._since[1] + 1)
            self._recent.append(loss)
            self._measured[TRAINING] = math.fsum(self._recent) / len(self._recent)
            # At the first evaluation there must be a best one already, from before training may have gone wrong.
            if self._bounds is not None and TRAINING not in self._bounds.best:
                self._bounds.see(TRAINING, loss)
        elif self._since[1] == 0:
            self._measured[TRAINING] = loss  # no step since the last evaluation has a loss

    def add_evaluation(self, losses: Mapping[str, float]) -> bool:
        """Take held-out losses; whether they and the last steps' are out of bounds."""
        self._measured |= losses
        total, steps = self._since
        self._means, self._since = dict(losses) | ({TRAINING: total / steps} if steps else {}), (0.0, 0)
        for name, loss in self._means.items():
            if math.isfinite(loss):
                self._lowest[name] = min(loss, self._lowest.get(name, math.inf))
        # Against all that was measured last, so that training's loss takes part: only both together mean divergence.
        return self._bounds is not None and self._bounds.add(self._measured)

    def fault(self, step: int, *, last: bool) -> str | None:
        """What ends the run at this evaluation, if anything; `last`: it is the last one."""
        reason = None if self._bounds is None else self._bounds.fault(step, self._measured, last=last)
        return reason and f"training {reason}; lower `{LR_KEY}` ({self._lr:.3g}) or warm up longer"

    def worse(self, step: int) -> str | None:
        """What to say where the losses no longer fall because training went wrong, slowly or once and for all.

        A model that only overfits has its lowest training loss now.
        """
        # Without a step since the last evaluation there is nothing to tell overfitting from divergence by.
        if self._config is None or TRAINING not in self._means:
            return None
        share, lowest = self._config.plateau_rise, self._lowest
        # One low loss is enough to be sound: overfitting raises the held-out losses alone.
        if any(loss <= (1 + share) * lowest.get(name, math.inf) for name, loss in self._means.items()):
            return None
        shown = ", ".join(f"{name} loss {loss:.4g} (lowest {lowest[name]:.4g})" for name, loss in self._means.items())
        return (
            f"training diverged at step {step}: it no longer improves, at losses that are more than {share:.0%} above"
            f" the lowest: {shown}; lower `{LR_KEY}` ({self._lr:.3g}) or warm up longer"
        )

    @property
    def in_bounds(self) -> bool:
        """Whether the last evaluation was within bounds."""
        return self._bounds is None or self._bounds.in_row == 0

    @property
    def sound(self) -> bool:
        """Whether the last step was made and the last losses were within bounds."""
        return self.skips.in_row == 0 and self.in_bounds

    def state_dict(self) -> dict[str, Any]:
        """Plain data from which an interrupted run goes on judging the same."""
        bounds = None if self._bounds is None else self._bounds.state_dict()
        return {
            "skips": self.skips.state_dict(),
            "bounds": bounds,
            "measured": dict(self._measured),
            "recent": list(self._recent),
            "since": self._since,
            "lowest": dict(self._lowest),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        self.skips.load_state_dict(state["skips"])
        # JSON has no NaN: a checkpoint holds null for it. `_means` is not kept, for it is
        # made anew at the next evaluation.
        self._measured = {name: math.nan if loss is None else loss for name, loss in state["measured"].items()}
        self._since, self._lowest = (float(state["since"][0]), int(state["since"][1])), dict(state["lowest"])
        if self._bounds is not None and state["bounds"] is not None:
            self._bounds.load_state_dict(state["bounds"])
        if "recent" in state:
            self._recent = deque(map(float, state["recent"]), maxlen=RECENT)
        elif self._bounds is not None:
            # Of an older version, whose best was the lowest step's, or the 0 of one without labels.
            self._bounds.best.pop(TRAINING, None)
            if lowest := self._lowest.get(TRAINING):
                self._bounds.see(TRAINING, lowest)
