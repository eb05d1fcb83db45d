"""Influence of the training documents, measured in the steps of pretraining that train on them.

Decides when to measure, and along what: the gradient of a fixed piece of the reference text, as it is or as the
optimizer would use it next. How a step is read is in `influence.in_run`. Training is the same, bit for bit, whether or
not it is watched.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from synpro_engine.config import remove_directory
from synpro_engine.config.artifact import MANIFEST
from synpro_engine.cycle.sections import InRunConfig
from synpro_engine.data import Batch, TokenCorpus, TokenLoader, reference_windows
from synpro_engine.dist import Topology, on_main, say
from synpro_engine.influence import (
    Direction,
    Examples,
    InRun,
    ScoreLog,
    load_direction,
    mean_direction,
    mean_gradient,
    next_step_directions,
    save_direction,
)
from synpro_engine.influence.directions import NoDirectionError
from synpro_engine.train.engine import Engine, LossFn
from synpro_engine.train.metrics import MetricsLog
from synpro_engine.train.watcher import Watching

DIRECTION, ALONE = "reference", " alone"
"""In the score log: the name of the direction that all references have together, and what stands behind the name of
each where there are several."""
_RESUMED = "in-run-direction"  # and the step after which a run was asked to stop


class InRunScores:
    """Watches pretraining (see `train.run.Watcher`) and keeps a log of its documents' scores.

    Of each step the metrics get a record `in_run`: its `seconds`, whether it was `scored`, and `direction_seconds`,
    what renewing the direction took before it (0 where it was kept).
    """

    def __init__(
        self,
        config: InRunConfig,
        log: Path,
        references: Mapping[str, TokenCorpus],
        topology: Topology,
        *,
        weights: Mapping[str, float] | None = None,
    ) -> None:
        """log: the file of scores; its keys are the ids of the documents that are trained on.

        weights: of the references by name, in the gradient that scores go along; equal where not given.
        """
        self._config, self._path, self._topology = config, log, topology
        self._references, self._weights = references, weights or dict.fromkeys(references, 1.0)
        self._in_run: InRun | None = None
        self._along: dict[str, Direction] | None = None

    def begin(self, engine: Engine, loader: TokenLoader, log: MetricsLog, resume_step: int | None) -> None:
        """Open the score log; what a resumed run scored after its step is dropped, as from its metrics.

        A run that was asked to stop at this step goes on with the direction that it had. ValueError for a mixture.
        """
        if len(loader.samples_by_source) > 1:
            raise ValueError("in-run scores go by document ids, which are unique within one source only")
        self._engine, self._loader, self._metrics = engine, loader, log
        self._log = ScoreLog(self._path, self._topology, resume_step=resume_step)
        # Rank 0's look for all: loading a direction is collective.
        if resume_step is not None and on_main(self._topology, lambda: self._is_whole(resume_step)):
            place = self._resumed_path(resume_step)
            self._go_along({name: load_direction(place / name, engine.model) for name in self._names})
        on_main(self._topology, lambda: self._remove(resume_step))

    def stop(self) -> None:
        """Keep the direction: the weights that it was made from are gone when the run goes on."""
        for name, direction in (self._along or {}).items():
            save_direction(self._resumed_path(self._engine.step_index) / name, self._engine.model, direction)

    def saved(self) -> None:
        """The run goes on from this step, should it be killed; a direction of an earlier one is removed."""
        on_main(self._topology, lambda: self._remove(self._engine.step_index))

    def _is_whole(self, step: int) -> bool:
        """Whether all directions of a step are there: what a kill cut off is renewed."""
        return all((self._resumed_path(step) / name / MANIFEST).exists() for name in self._names)

    def _remove(self, but: int | None) -> None:
        """Remove what was kept at other steps than this one."""
        for path in self._path.parent.glob(f"{_RESUMED}-*"):
            if but is None or path != self._resumed_path(but):
                remove_directory(path)

    def _resumed_path(self, step: int) -> Path:
        return self._path.with_name(f"{_RESUMED}-{step}")

    @property
    def _names(self) -> list[str]:
        """Of the directions, in the score log."""
        alone = [name + ALONE for name in self._references] if len(self._references) > 1 else []
        return [DIRECTION, *alone]

    def _go_along(self, directions: dict[str, Direction] | None) -> None:
        self._along = directions
        self._in_run = None if directions is None else InRun(self._engine, directions)

    @contextmanager
    def watching(self, microbatches: Sequence[Batch], loss_fn: LossFn[Batch], denominator: int) -> Iterator[Watching]:
        """Score the documents of the step in the block, if it is one of those to score and changes the weights."""
        # The number that the step will have in metrics and log.
        number, renewing = self._engine.step_index + 1, 0.0
        scored = number > self._config.start and number % self._config.every == 0
        begun = time.perf_counter()
        # Anew with the first scored step of each `refresh`, whenever the run began.
        # By the step's number and not by a counter of this process, or a resumed run would renew at other steps.
        if scored and (self._in_run is None or (number - self._config.every) % self._config.refresh == 0):
            self._renew(number, microbatches)
            renewing = time.perf_counter() - begun
        begun = time.perf_counter()
        scored = scored and self._in_run is not None
        if scored and self._in_run is not None:
            examples = [self._examples(batch) for batch in microbatches]
            with self._in_run.watch(microbatches, examples, loss_fn, denominator=denominator) as watched:
                watching = Watching(watched.loss_fn)
                yield watching
            scored = not watching.skipped  # else nothing was trained on
            if scored:
                # Behind the block: the scores are whole only when the step's backward passes are over.
                self._log.write(number, watched.scores)
        else:
            yield Watching(loss_fn)
        seconds = time.perf_counter() - begun
        self._metrics.write("in_run", number, {"scored": scored, "seconds": seconds, "direction_seconds": renewing})

    def _renew(self, number: int, microbatches: Sequence[Batch]) -> None:
        """Make the direction anew. A step that training will skip shows none; it ends no run, and is not scored."""
        self._go_along(None)  # the last one's memory is free for the next
        try:
            self._go_along(dict(zip(self._names, self._directions(microbatches), strict=True)))
        except NoDirectionError as error:
            say(self._topology, f"step {number} is not scored: {error}")

    def _directions(self, microbatches: Sequence[Batch]) -> list[Direction]:
        """That of all references, and where there are several that of each."""
        rows, seq_len = microbatches[0].tokens_BS.shape
        dp = self._topology.dp
        references = reference_windows(
            self._references,
            self._weights,
            seq_len,
            batch_size=rows,
            max_tokens=self._config.reference_tokens,
            dp_rank=dp.rank,
            dp_size=dp.size,
            separate_documents=self._loader.separate_documents,
        )
        with ExitStack() as stack:
            for chunk in self._engine.wrapped:  # else overlapped reductions would begin with these gradients
                stack.enter_context(chunk.no_sync())
            if self._config.direction == "gradient":
                alone = {name: mean_gradient(self._engine.model, batches) for name, batches in references.items()}
                return [mean_direction(alone, self._weights), *(alone.values() if len(alone) > 1 else ())]
            made = next_step_directions(self._engine, references, [microbatches], weights=self._weights)
            return [direction for _, direction in made]

    def _examples(self, batch: Batch) -> Examples:
        """The documents of a micro-batch; a position is of the document whose token it predicts."""
        assert batch.document_BS is not None, "batches that are scored come from a loader"
        numbers, example_BS = batch.document_BS.unique(return_inverse=True)
        return Examples(keys=tuple(map(self._loader.document_id, numbers.tolist())), example_BS=example_BS)
