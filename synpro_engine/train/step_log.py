"""What is written of a run's steps, and said of those that went wrong."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from synpro_engine.data import TokenLoader
from synpro_engine.dist import Topology, say
from synpro_engine.train.engine import Engine, StepResult
from synpro_engine.train.layer_norms import gradient_norms, told
from synpro_engine.train.metrics import MetricsLog, Throughput
from synpro_engine.train.stragglers import Slowest


class StepLog:
    """The lines of steps in a run's metrics. All methods but `write` are collective."""

    def __init__(
        self, log: MetricsLog, engine: Engine, loader: TokenLoader, throughput: Throughput, topology: Topology
    ) -> None:
        self._log, self._engine, self._loader = log, engine, loader
        self._throughput, self._topology = throughput, topology

    def write(self, result: StepResult, labels: int, tokens: int, slowest: Slowest | None) -> None:
        """What a step measured. labels: of the whole job in it; tokens: of the run so far."""
        values = {"loss": result.loss, "grad_norm": result.grad_norm, "lr": result.lr}
        values |= {"weight_decay": result.weight_decay, "skipped": result.skipped, "tokens": tokens}
        values |= {name: value / max(1, labels) for name, value in result.extras.items()}
        self._log.write("train", result.step, values | self._throughput.measure())
        if slowest is not None:
            self._log.write("ranks", result.step, asdict(slowest))

    def write_layers(self, result: StepResult) -> None:
        """The gradient's norms by layer."""
        self._log.write("layers", result.step, gradient_norms(self._engine, result.grad_norm))

    def write_wrong(self, result: StepResult, spike: str | None, position: dict[str, Any]) -> None:
        """A step that was skipped, or whose numbers are far above the last ones; position: the loader's before it."""
        norms, why = gradient_norms(self._engine, result.grad_norm), spike or "loss or gradient is not finite"
        say(self._topology, f"step {result.step}: {'skipped, ' if result.skipped else ''}{why}; {told(norms)}")
        if self._topology.is_main:
            # The documents that it read: one that spoils steps again and again is among them.
            values = {"loss": result.loss, "grad_norm": result.grad_norm, "lr": result.lr, "why": why}
            read = {"layers": norms, "documents": self._loader.documents_at(position)}
            self._log.write("skipped" if result.skipped else "spike", result.step, values | read)
