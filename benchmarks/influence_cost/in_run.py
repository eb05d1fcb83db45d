"""What reading every example's influence off a training step costs, over the same step that nobody watches.

Both have the loss that training uses. Knows one engine that goes on training while it is timed.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from benchmarks.common.harness import Step
from benchmarks.influence_cost.records import CostRow, Turns, differing, take_turns
from benchmarks.influence_cost.scoring import gradient_dot
from benchmarks.influence_cost.setup import Bench, fresh_engine
from synpro_engine.influence import Direction, Examples, InRun, next_step_direction
from synpro_engine.influence.batching import WindowBatch
from synpro_engine.influence.in_run import Method
from synpro_engine.train.config import TrainConfig
from synpro_engine.train.engine import Engine
from synpro_engine.train.losses import LanguageModelLoss, count_labels

LIMIT = 1.03
Z_LOSS = float(TrainConfig.model_fields["z_loss"].default)
RENEWAL = "renewing the direction"
TOLERANCE = 1e-4
"""Of the largest score."""


@dataclass(frozen=True, kw_only=True)
class Training:
    """An engine and one step's data, whole rows each an example, cut into micro-batches of two sizes."""

    bench: Bench
    engine: Engine
    rows: list[list[int]]
    reference: list[WindowBatch]

    def batches(self, method: Method | None) -> list[WindowBatch]:
        """`gradient` wants one example a micro-batch."""
        return self.bench.windows(self.rows, self._rows_at_once(method))

    def unwatched(self, method: Method | None) -> str:
        """The name of the step that `method` is held against."""
        return f"unwatched step, {self._rows_at_once(method)} at once"

    def _rows_at_once(self, method: Method | None) -> int:
        return 1 if method == "gradient" else self.bench.settings.step_micro_batch

    def direction(self) -> Direction:
        """What pretraining scores along: the reference gradient as AdamW's next step, on this data, would meet it."""
        with ExitStack() as stack:
            for chunk in self.engine.wrapped:
                stack.enter_context(chunk.no_sync())
            return next_step_direction(self.engine, self.reference, [self.batches(None)])

    def step(self, method: Method | None) -> Step:
        """One step of the engine that nobody watches, cut as `method` wants it."""
        batches, loss = self.batches(method), LanguageModelLoss(Z_LOSS)
        return lambda _turn: self.engine.step(batches, loss, denominator=_labels(batches))

    def watched(self, method: Method, direction: Direction, z_loss: float) -> Callable[[int], list[float]]:
        """One watched step; its scores, by row."""
        batches, loss = self.batches(method), LanguageModelLoss(z_loss)
        in_run = InRun(self.engine, direction, method=method)
        keys = [[str(place.window.sequence) for place in batch.places] for batch in batches]

        def step(_turn: int) -> list[float]:
            examples = [Examples.rows(own, batch) for own, batch in zip(keys, batches, strict=True)]
            count = _labels(batches)
            with in_run.watch(batches, examples, loss, denominator=count) as watching:
                self.engine.step(batches, watching.loss_fn, denominator=count)
            found = {int(score.key): score.values["influence"] for score in watching.scores}
            return [found[index] for index in sorted(found)]

        return step


METHODS: tuple[Method, ...] = ("gradient", "prefix", "capture")


def measure(bench: Bench) -> list[CostRow]:
    """Each method over its unwatched step, and over a run that scores some of its steps."""
    settings = bench.settings
    pieces = bench.sequences(settings.step_rows + -(-settings.reference_tokens // settings.seq_len), 60)
    rows, reference = pieces[: settings.step_rows], pieces[settings.step_rows :]
    size = settings.step_micro_batch
    training = Training(bench=bench, engine=fresh_engine(bench), rows=rows, reference=bench.windows(reference, size))
    wrong = {method: _wrong(training, method) for method in METHODS}
    direction = training.direction()
    steps: dict[str, Step] = {training.unwatched(method): training.step(method) for method in METHODS}
    steps |= {_watching(method): training.watched(method, direction, Z_LOSS) for method in METHODS}
    steps[RENEWAL] = lambda _turn: InRun(training.engine, training.direction())
    turns = take_turns(bench, "in-run", steps)
    found = [_step_row(training, turns, method, wrong[method]) for method in METHODS]
    return found + [_run_row(training, turns, method, wrong[method]) for method in METHODS]


def _step_row(training: Training, turns: Turns, method: Method, wrong: str | None) -> CostRow:
    settings, base = training.bench.settings, training.unwatched(method)
    what = f"{len(training.rows)} examples of {settings.seq_len} tokens, {base.partition(', ')[2]}"
    # A weight and token take 3 products in training, and one more for capture. `gradient` and `prefix` multiply an
    # example's gradient with the direction once: a token's share is 1/T of that.
    scored = 1.0 if method == "capture" else 1.0 / settings.seq_len
    return turns.row(_watching(method), base, what, wrong=wrong, limit=LIMIT, arithmetic=1.0 + scored / 3.0)


def _run_row(training: Training, turns: Turns, method: Method, wrong: str | None) -> CostRow:
    """Per step of a run: the extra time of scored steps and of new directions, spread over all steps."""
    settings, base, name = training.bench.settings, training.unwatched(method), _watching(method)
    extra, renewal = turns.ratios(name, base), turns.ratios(RENEWAL, base)
    pairs = zip(extra, renewal, strict=True)
    over_run = [1 + (one - 1) / settings.every + new / settings.refresh for one, new in pairs]
    return turns.row(
        f"{name}, over a run",
        base,
        f"1 step in {settings.every} scored, the direction renewed once in {settings.refresh} from "
        f"{settings.reference_tokens} tokens, steps of {len(training.rows) * settings.seq_len} tokens",
        wrong=wrong,
        ratios=over_run,
        counts={"renewal_over_step": statistics.median(renewal)},
    )


def _wrong(training: Training, method: Method) -> str | None:
    """Why the scores of a step are wrong, or None: against the dot product with each row's own gradient."""
    v = training.direction()
    true = [gradient_dot(training.bench, training.engine.model, ids, v) for ids in training.rows]
    found = training.watched(method, v, 0.0)(0)
    return differing(found, true, TOLERANCE * max(map(abs, true)))


def _watching(method: Method) -> str:
    return f"in_run {method}"


def _labels(batches: Sequence[WindowBatch]) -> float:
    return float(sum(count_labels(batch.labels_BS) for batch in batches))
