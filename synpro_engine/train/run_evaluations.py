"""What a run measures on its way: losses of held-out text, answers to questions, and whether they say that it ends."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from math import nan
from pathlib import Path
from typing import Any

from synpro_engine.backend.spans import EVALUATE, span
from synpro_engine.data import Batch
from synpro_engine.data.choices import QuestionSet
from synpro_engine.dist import broadcast_object, say
from synpro_engine.train.config import TrainConfig
from synpro_engine.train.divergence import DivergedError, PretrainGuard
from synpro_engine.train.engine import Engine
from synpro_engine.train.evaluation import held_out_losses
from synpro_engine.train.metrics import MetricsLog, Throughput
from synpro_engine.train.plateau import PlateauDecision, PlateauDetector
from synpro_engine.train.questions import ask
from synpro_engine.train.run_state import RunProgress
from synpro_engine.train.watcher import Evaluated


class RunEvaluations:
    """The evaluations of one run; `begin` comes before the first. All methods are collective."""

    def __init__(
        self,
        engine: Engine,
        config: TrainConfig,
        *,
        held_out: Mapping[str, Iterable[Batch]],
        mixed: Mapping[str, Mapping[str, float]],
        questions: Mapping[str, QuestionSet],
        seq_len: int,
        guard: PretrainGuard,
        throughput: Throughput,
        evaluated: Evaluated | None,
    ) -> None:
        """seq_len: at which questions are asked. evaluated: is told of each evaluation, and may end the run."""
        self._engine, self._config, self._topology = engine, config, engine.model.topology
        self._held_out, self._mixed, self._questions, self._seq_len = held_out, mixed, questions, seq_len
        self._guard, self._throughput, self._evaluated = guard, throughput, evaluated
        self._detector = None if config.plateau is None else PlateauDetector(config.plateau)

    def begin(self, log: MetricsLog) -> None:
        """log: where what is measured is written."""
        self._log = log

    def spent(self, steps: int, tokens: int) -> bool:
        """Whether a run of so many steps and tokens is at the end of the detector's budget."""
        return self._detector is not None and self._detector.spent(steps, tokens) is not None

    def state_dict(self) -> dict[str, Any] | None:
        """The detector's."""
        return None if self._detector is None else self._detector.state_dict()

    def load_state_dict(self, state: Mapping[str, Any], eval_every: int, *, where: Path) -> None:
        """eval_every: the steps between the evaluations that `state` is of. where: the run's directory."""
        if self._detector is None:
            return
        if eval_every == self._config.eval_every:
            self._detector.load_state_dict(state)
            return
        # A slope is per evaluation, and so is what is asked of it.
        say(
            self._topology,
            f"{where}: evaluations are {self._config.eval_every} steps apart from here on, {eval_every} before;"
            " the plateau detector begins anew",
        )

    def measure(self, state: RunProgress, *, judge: bool) -> None:
        """Measure the held-out losses and, if asked, let the plateau detector judge the reference loss.

        Raises DivergedError where the losses have been out of bounds for too long, or no longer fall but were lower.
        """
        held, step = self._config.evaluate_with, self._engine.step_index
        try:
            with self._throughput.pause(), span(EVALUATE), self._engine.holding(held):
                sets = {name: self._watched(step, name, batches) for name, batches in self._held_out.items()}
                losses = held_out_losses(self._engine.model, sets, self._mixed, micro_batch=self._config.micro_batch)
        finally:
            self._topology.watch.hang.rest()
        state.losses, state.evaluated_at = losses, step
        values = {f"{name}_loss": loss for name, loss in losses.items()}
        if losses:
            self._write("eval", {**values, "tokens": state.tokens})
        # Before the detector, which is shown NaN where this says that the losses are out of bounds.
        out = self._guard.add_evaluation(losses)
        if judge and self._detector is not None:
            self._judge(self._detector, state, nan if out else losses["reference"])
        # After the plateau, which may end the run: at the last evaluation one loss out of bounds is enough.
        ends = state.finished(step, self._config.max_steps)
        fault = broadcast_object(self._guard.fault(step, last=ends), self._topology)
        if fault is not None:
            raise DivergedError(fault)
        if self._evaluated is not None:
            self._evaluated(step, losses, ends)

    def ask(self, state: RunProgress) -> None:
        """Put the multiple-choice questions to the model, where there are any, and write down how it answered."""
        if not self._questions:
            return
        model, size = self._engine.model, self._config.micro_batch
        record: dict[str, float | int | str] = {"tokens": state.tokens}
        with self._throughput.pause(), span(EVALUATE), self._engine.holding(self._config.evaluate_with):
            # The same order of sets on every rank: asking is full of collectives.
            for name, asked in self._questions.items():
                answers = ask(model, asked, seq_len=self._seq_len, micro_batch=size)
                record |= {f"{name}/{what}": value for what, value in asdict(answers).items()}
        state.asked_at = self._engine.step_index
        self._write("tasks", record)

    def _watched(self, step: int, name: str, batches: Iterable[Batch]) -> Iterator[Batch]:
        """The same, and a batch that takes too long is a hang as a step that does."""
        hang = self._topology.watch.hang
        hang.begin(f"the evaluation behind step {step}, on {name}")
        for batch in batches:
            yield batch
            hang.goes_on()

    def _judge(self, detector: PlateauDetector, state: RunProgress, loss: float) -> None:
        """loss: of the reference; NaN where it is out of bounds, and says nothing of progress."""
        step = self._engine.step_index
        # Called on every rank, though only rank 0's decision counts: the detector's state stands in a checkpoint.
        decision = detector.update(step - state.first_step, loss, state.tokens)
        # A rising loss ends by the detector's rule too; whether the run succeeded is told apart here.
        worse = self._guard.worse(step) if decision.kind == "plateau" else None
        decision, worse = broadcast_object((decision, worse), self._topology)
        if worse is not None:
            raise DivergedError(worse)
        self._take(decision, state)

    def _take(self, decision: PlateauDecision, state: RunProgress) -> None:
        state.plateau, state.budget = decision.kind == "plateau", decision.kind == "budget"
        state.reason = decision.reason
        self._log.write(
            "plateau",
            self._engine.step_index,
            {
                "stop": decision.stop,
                "ended_by": decision.kind,
                "reason": decision.reason,
                "improvement": decision.improvement,
                "evaluations": decision.evaluations,
            },
        )
        if decision.stop:
            say(self._topology, decision.reason)

    def _write(self, kind: str, record: dict[str, float | int | str]) -> None:
        """With the name of the weights that were measured, where they are not those that train."""
        held = self._config.evaluate_with
        self._log.write(kind, self._engine.step_index, record if held == "raw" else {**record, "weights": held})
