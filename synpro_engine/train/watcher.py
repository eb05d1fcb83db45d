"""Who looks on while a run trains: at its steps, and at its evaluations."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

from synpro_engine.data import Batch, TokenLoader
from synpro_engine.train.engine import Engine, LossFn
from synpro_engine.train.metrics import MetricsLog


@dataclass
class Watching:
    """One step that is looked on at."""

    loss_fn: LossFn[Batch]
    """For the step to take."""
    skipped: bool = False
    """Whether the step changed nothing; the run says so when it is over."""


class Watcher(Protocol):
    """Looks on while a run's steps are made, and must leave every one of them as it is. Collective."""

    def begin(self, engine: Engine, loader: TokenLoader, log: MetricsLog, resume_step: int | None) -> None:
        """Before the first step. resume_step: the step that a resumed run goes on from; None for a new run."""
        ...

    def stop(self) -> None:
        """The run is left after this step, a checkpoint is written; keep what goes on from there needs."""
        ...

    def saved(self) -> None:
        """A checkpoint of this step is made: what was kept for an earlier one is of no more use."""
        ...

    def watching(
        self, microbatches: Sequence[Batch], loss_fn: LossFn[Batch], denominator: int
    ) -> AbstractContextManager[Watching]:
        """Around one `Engine.step` with these arguments, which takes the loss function of what is yielded."""
        ...


Evaluated = Callable[[int, Mapping[str, float], bool], None]
"""Is told of each evaluation that the run goes on from: the step, losses by held-out set, and whether it is the last.

Collective. What it raises, which every rank must, ends the run there.
"""
