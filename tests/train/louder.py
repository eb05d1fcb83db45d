"""A watcher of training that makes the loss of chosen steps larger, or no number."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

from torch import Tensor

from synpro_engine.data import Batch, TokenLoader
from synpro_engine.model.model import Model
from synpro_engine.train.engine import Engine, LossFn
from synpro_engine.train.losses import LossTerms
from synpro_engine.train.metrics import MetricsLog
from synpro_engine.train.watcher import Watching


class Louder:
    """Looks on, and makes the loss of chosen steps so many times as large."""

    def __init__(self, factor: float, *steps: int) -> None:
        self._factor, self._steps = factor, set(steps)

    def begin(self, engine: Engine, loader: TokenLoader, log: MetricsLog, resume_step: int | None) -> None:
        self._engine = engine

    def stop(self) -> None:
        """Nothing to keep."""

    def saved(self) -> None:
        """Nothing was kept."""

    @contextmanager
    def watching(self, microbatches: Sequence[Batch], loss_fn: LossFn[Batch], denominator: int) -> Iterator[Watching]:
        def louder(model: Model, hidden_BSH: Tensor, batch: Batch) -> LossTerms:
            terms = loss_fn(model, hidden_BSH, batch)
            return replace(terms, objective=terms.objective * self._factor, loss=terms.loss * self._factor)

        yield Watching(louder if self._engine.step_index + 1 in self._steps else loss_fn)
