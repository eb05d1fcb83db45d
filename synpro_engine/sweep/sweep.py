"""A sweep: one whole pretraining for each trial, by any number of workers on one directory and one storage.

Whoever holds the lock of a trial's directory works on that trial. Asking Optuna for another one only makes its number:
a trial that is running in the storage and whose directory nobody holds was left by a worker that was killed or stopped,
and the next one that looks goes on with it, from its checkpoint. So none is lost, and none is made twice.
"""

from __future__ import annotations

import gc
import json
import secrets
import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Literal

from pydantic import Field

from synpro_engine.config import Config, Record, UserError, json_text, partial_path, read_record, remove_directory
from synpro_engine.config.errors import TransientError
from synpro_engine.cycle import Cycle, Recipe
from synpro_engine.cycle.layouts import check_pretraining
from synpro_engine.cycle.run_layout import PRETRAIN, TOKENIZE, TRAINING_RESULT
from synpro_engine.dist import Stopped, Topology, asked_to_stop, on_main, say
from synpro_engine.dist.job import SharedError
from synpro_engine.report.numbers import seconds
from synpro_engine.storage import joined
from synpro_engine.sweep.outcome import Outcome, cell
from synpro_engine.sweep.place import Place, SweepRecord, hold
from synpro_engine.sweep.ranges import Range, Value, with_settings
from synpro_engine.sweep.study import (
    Ending,
    PrunerName,
    SamplerName,
    SearchConfig,
    Study,
    combinations,
    shown_url,
    sqlite_url,
)
from synpro_engine.train.checkpoint_directory import CHECKPOINTS
from synpro_engine.train.divergence import DivergedError

_TRIALS = 20
_DRAWN_EVERY_S = 60.0
_MOST_FAILURES = 3
"""Trials in a row that cannot be trained, after which the rest would not be either."""


class SweepConfig(Config):
    """How a sweep is made; what it varies are its ranges."""

    trials: int | None = Field(default=None, gt=0)
    """Trials in all, with those of other workers; 20 where not given, or all of a grid."""
    measured: Literal["reference", "validation"] = "reference"
    """The held-out text whose loss trials are compared by, at their end and on the way."""
    sampler: SamplerName = "tpe"
    pruner: PrunerName = "median"
    prune_after: int | None = Field(default=None, ge=0)
    """Steps before which no trial is ended. Where not given, a third of the training, and its warm-up at least: before
    that who learns fastest is ahead, whatever it comes to."""
    seed: int | None = Field(default=None, ge=0)
    """Of what is tried; the recipe's where not given."""
    storage: str | None = None
    """URL of a database; None: a SQLite file in the directory."""


class _Result(Record):
    losses: dict[str, float | None]


class _Pruned(Exception):
    """This trial is ended early. Every rank raises it."""


class Sweep:
    """A recipe's sweep in its directory, as one worker makes it."""

    def __init__(
        self, recipe: Recipe, ranges: tuple[Range, ...], directory: Path, config: SweepConfig, topology: Topology
    ) -> None:
        self.recipe, self.ranges, self.config = recipe.model_copy(update={"tuned": None}), ranges, config
        self.place, self.topology = Place(directory), topology
        most = len(combinations(ranges)) if config.sampler == "grid" else _TRIALS
        self.trials = config.trials or most
        if config.sampler == "grid":
            self.trials = min(self.trials, most)
        self._failures, self._drawn = 0, 0.0

    def run(self) -> None:
        """Make trials until there are enough of them, or only such are left as others are at. Collective.

        Raises UserError for a directory of another sweep, a storage that does not answer, and trials that cannot be
        trained one after the other; Stopped when the job is asked to stop, with the trial in hand saved.
        """
        topology = self.topology
        on_main(topology, self._open)
        self._prepare_text()
        try:
            while True:
                if asked_to_stop(topology):
                    raise Stopped(f"{self.place.directory}: stopped between trials")
                with ExitStack() as held:
                    taken = on_main(topology, lambda held=held: self._take(held))
                    if taken is None:
                        break
                    self._make(*taken)
        finally:
            # Not by on_main: an exception may have taken the other ranks elsewhere.
            if topology.is_main:
                self._write(picture=True)
        on_main(topology, self._tell)

    def _open(self) -> None:
        """On rank 0: make sure whose directory it is, and open the storage."""
        config, training = self.config, self.recipe.pretrain
        first = max(training.schedule.warmup_steps, training.max_steps // 3)
        search = SearchConfig(
            sampler=config.sampler,
            pruner=config.pruner,
            prune_after=first if config.prune_after is None else config.prune_after,
            max_steps=training.max_steps,
            seed=self.recipe.seed if config.seed is None else config.seed,
        )
        record = SweepRecord(
            name=f"{self.recipe.name}-{secrets.token_hex(4)}",
            recipe=json.loads(json_text(self.recipe.recorded())),
            over=tuple(map(str, self.ranges)),
            measured=config.measured,
            storage=None if config.storage is None else shown_url(config.storage, driver=False),
        )
        with self.place.turn(), self.place.claimed(record) as self.name:
            self.study = Study(config.storage or sqlite_url(self.place.storage), self.name, self.ranges, search)
        trials = self.study.trials()
        if (runs := self.place.most_runs) > len(trials):
            lost = f"the storage has no trial {runs - 1}, whose run is here"
            raise UserError(f"{self.place.directory}: {lost}; bring it back, or give another --dir")
        self._since, self._over_then = time.monotonic(), sum(trial.over for trial in trials)
        if training.eval_every == 0 and config.pruner != "none":
            say(self.topology, "`pretrain.eval_every` is 0: trials are measured at their end alone, and none is pruned")

    def _prepare_text(self) -> None:
        """Tokenise what all trials read, once; other workers wait for it."""
        cycle = Cycle(self.recipe, self.place.text, self.topology)
        with ExitStack() as held:
            on_main(self.topology, lambda: hold(self.place.text, held, wait=True), label="waiting for the text")
            with cycle.claimed(held_already=True):
                cycle.bring_up(TOKENIZE)

    def _take(self, held: ExitStack) -> tuple[int, Mapping[str, Value]] | None:
        """On rank 0: a trial that nobody is at and its settings, its directory's lock in `held`; None: there is none.

        Those that were left come first, so that a sweep goes on where it was.
        """
        for number in self.study.running():
            if (settings := self._hold(number, held)) is not None:
                return number, settings
        while True:
            with self.place.turn():
                number = self.study.ask(self.trials)
            if number is None:
                return None
            # Another worker may have been quicker to find it running and at nobody's.
            if (settings := self._hold(number, held)) is not None:
                return number, settings

    def _hold(self, number: int, held: ExitStack) -> Mapping[str, Value] | None:
        if not hold(self.place.run(number), held):
            return None
        if number in self.study.running():  # else its worker ended it between our look and our lock
            if (settings := self.study.settings(number)) is not None:
                return settings
            self.study.end(number, "failed", "was begun again and again without an evaluation")
        held.close()
        return None

    def _make(self, number: int, settings: Mapping[str, Value]) -> None:
        """Train a trial and tell what came of it. Collective."""
        topology, begun = self.topology, time.monotonic()
        shown = ", ".join(f"{key}={cell(value)}" for key, value in settings.items())
        say(topology, f"[trial {number:03d}] {shown}")
        try:
            ending, told = self._ended(number, settings)
        except Stopped:
            on_main(topology, lambda: self.study.rest(number))
            raise
        gc.collect()  # a model that waits for it would lie beside the next trial's
        on_main(topology, lambda: self._note(number, ending, told))
        on_main(topology, lambda: self._progress(number, time.monotonic() - begun))
        self._failures = self._failures + 1 if ending == "failed" else 0
        if self._failures == _MOST_FAILURES:
            # Every rank raises it.
            raise SharedError(f"{self._failures} trials in a row cannot be trained; the last one: {told}")

    def _ended(self, number: int, settings: Mapping[str, Value]) -> tuple[Ending, str | float]:
        """Train a trial; how it ended, and its loss or what ended it early. Collective.

        Raises TransientError where a file system or the storage does not answer.
        """
        # What one rank of several alone raises is not caught: the others are not here, and the job ends.
        shared = UserError if self.topology.world_size == 1 else SharedError
        try:
            loss = self._train(number, settings)
        except _Pruned as end:
            return "pruned", str(end)
        except DivergedError as end:
            return "diverged", str(end)
        except TransientError:  # no fault of the trial, which whoever looks for work next goes on with
            raise
        except shared as fault:
            return "failed", str(fault)
        return ("diverged", "its loss is not finite at the end") if loss is None else ("complete", loss)

    def _train(self, number: int, settings: Mapping[str, Value]) -> float | None:
        """The loss at the end of a trial's pretraining, which goes on where it was; None where it is not finite."""
        topology, directory, measured = self.topology, self.place.run(number), self.config.measured

        def evaluated(step: int, losses: Mapping[str, float], last: bool) -> None:
            # Before the first step all trials are alike; behind the last one there is nothing left to save.
            if step and on_main(topology, lambda: self.study.report(number, step, losses[measured])) and not last:
                raise _Pruned(f"at step {step}")

        # There first: settings that do not go together are then a fault that every rank raises.
        on_main(topology, lambda: check_pretraining(self._recipe(number, settings), topology.world_size))
        cycle = Cycle(self._recipe(number, settings), directory, topology, evaluated=evaluated, text=self.place.text)
        with cycle.claimed(held_already=True):
            on_main(topology, lambda: self.place.link_text(directory))
            cycle.bring_up(PRETRAIN)
        result = directory / PRETRAIN / TRAINING_RESULT
        return on_main(topology, lambda: read_record(result, _Result).losses[measured])

    def _recipe(self, number: int, settings: Mapping[str, Value]) -> Recipe:
        recipe = with_settings(self.recipe, settings, f"trial {number:03d}")
        if (copies := recipe.pretrain.checkpoint_copy) is None:
            return recipe
        # Each its own: a trial must not go on from another one's checkpoint.
        own = joined(copies, f"trial-{number:03d}")
        return recipe.model_copy(update={"pretrain": recipe.pretrain.model_copy(update={"checkpoint_copy": own})})

    def _note(self, number: int, ending: Ending, told: str | float) -> None:
        if ending == "complete":
            self.study.complete(number, float(told))
            return
        self.study.end(number, ending, str(told))
        # Last: a trial that is not over must not be without its checkpoints. Nothing goes on from these.
        remove_directory(partial_path(self.place.run(number) / PRETRAIN) / CHECKPOINTS)

    def _write(self, *, picture: bool) -> Outcome:
        """On rank 0: read the storage and write what came of it, in this worker's turn."""
        with self.place.turn():
            outcome = self._outcome()
            outcome.write(self.place.directory, picture=picture)
        return outcome

    def _outcome(self) -> Outcome:
        return Outcome(
            name=self.name,
            recipe=self.recipe,
            ranges=self.ranges,
            measured=self.config.measured,
            trials=tuple(self.study.trials()),
        )

    def _progress(self, number: int, spent: float) -> None:
        draw = time.monotonic() - self._drawn > _DRAWN_EVERY_S
        outcome = self._write(picture=draw)
        self._drawn = time.monotonic() if draw else self._drawn
        trial, best, over = outcome.trials[number], outcome.best, sum(trial.over for trial in outcome.trials)
        loss = "" if trial.loss is None else f", {self.config.measured} loss {trial.loss:.4f}"
        why = "" if trial.why is None else f" ({trial.why})"
        told = f"[trial {number:03d}] {trial.state}{loss}{why}, {seconds(spent)}; {over} of {self.trials} trials"
        told += "" if best is None else f", the best is {best.trial:03d} with {best.loss:.4f}"
        if over < self.trials:
            # By what all workers came to since this one began.
            each = (time.monotonic() - self._since) / max(1, over - self._over_then)
            told += f", about {seconds(each * (self.trials - over))} left"
        say(self.topology, told)

    def _tell(self) -> None:
        outcome = self._outcome()
        for line in outcome.table():
            print(line)
        if others := sum(trial.state == "running" for trial in outcome.trials):
            say(self.topology, f"{others} trials are with other workers; the last one that ends writes all of it")
