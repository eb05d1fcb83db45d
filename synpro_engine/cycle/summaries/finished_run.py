"""Reading a run's directory: which stages are finished, and what they wrote. Computes nothing."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import fields
from functools import cached_property
from pathlib import Path
from typing import TypeVar

from synpro_engine.config import Record, as_record, read_json, read_manifest, read_record, verify_artifact
from synpro_engine.cycle.recipe import Recipe
from synpro_engine.cycle.run_layout import (
    EVALUATE,
    EVALUATION,
    Round,
    evaluation_of_arm,
    seeded,
    training_of_arm,
)
from synpro_engine.cycle.steps.evaluation import Results
from synpro_engine.evaluate import Diversity
from synpro_engine.train.metrics import METRICS, read_metrics

R = TypeVar("R", bound=Record)


class _Counts(Record):
    counts: dict[str, int]


class FinishedRun:
    """The finished stages of one run; of the others every part is empty.

    Every reader raises UserError, which names the file, for what is damaged.
    """

    def __init__(self, directory: Path, recipe: Recipe, stages: Iterable[str]) -> None:
        """`stages` are the names of all stages that the recipe has. UserError for one whose files have changed."""
        self.directory, self.recipe = directory, recipe
        # A stage appears whole or not at all: one without its manifest is damaged, not unfinished.
        self.done = {stage for stage in stages if (directory / stage).exists()}
        for stage in sorted(self.done):
            verify_artifact(directory / stage)

    @cached_property
    def in_rounds(self) -> dict[str, Recipe]:
        """The arms that make text in rounds, and the recipe as each has it."""
        return {name: self.recipe.of_arm(name) for name, arm in self.recipe.all_arms.items() if arm.in_rounds}

    @property
    def rounds(self) -> list[Round]:
        """The rounds of all arms, those that may yet come too."""
        return [Round(number, arm) for arm in self.in_rounds for number in range(1, self.recipe.rounds + 1)]

    def label(self, operation: str, this: Round) -> str:
        """How the report names an operation of one round."""
        return self.of_arm(operation if self.recipe.rounds == 1 else f"{operation}, round {this.number}", this.of_arm)

    def of_arm(self, label: str, arm: str) -> str:
        """The same with the arm's name in front of it, where there are several that have such."""
        return f"{arm}: {label}" if len(self.in_rounds) > 1 else label

    def shards_of(self, this: Round) -> str:
        """The stage with a round's texts as tokens, which is another arm's where both make and choose the same."""
        if this.arm not in self.done:
            return this.shards
        parents = read_manifest(self.directory / this.arm).parents
        return next(parent for parent in parents if parent.endswith(f"{this.name}/shards"))

    def trained(self, arm: str, seed: int | None = None) -> list[str]:
        """The finished stages in which an arm trained on, in their order; seed: None for the run's own."""
        last = range(1, self.recipe.rounds + 1) if self.recipe.all_arms[arm].in_rounds else ()
        names = [Round(number, arm).arm for number in last] or [training_of_arm(arm)]
        return [stage for stage in (seeded(name, seed) for name in names) if stage in self.done]

    def record(self, stage: str, name: str, cls: type[R]) -> R:
        """A finished stage's JSON file."""
        return read_record(self.directory / stage / name, cls)

    def counts(self, stage: str, name: str) -> dict[str, int]:
        """A stage's JSON file of counts by name; empty while the stage is not finished."""
        if stage not in self.done:
            return {}
        path = self.directory / stage / name
        return as_record({"counts": read_json(path)}, _Counts, str(path)).counts

    def results(self) -> dict[str | None, Results]:
        """What was measured, by arm; under None of the plateau, and of a recipe that names no arms all of it."""
        return {arm: self.record(stage, EVALUATION, Results) for arm, stage in self._evaluations.items()}

    @property
    def with_fewer_gauges(self) -> list[str]:
        """Finished evaluations by an earlier version that had not all the gauges of texts that there are now."""
        known = {field.name for field in fields(Diversity)}

        def lacks(stage: str) -> bool:
            # As it was written: what is null there was measured, and had no value.
            rows = read_json(self.directory / stage / EVALUATION).get("diversity", {})
            return any(known - row.keys() for row in rows.values())

        return [stage for stage in self._evaluations.values() if lacks(stage)]

    @property
    def _evaluations(self) -> dict[str | None, str]:
        stages: dict[str | None, str] = {None: EVALUATE}
        stages |= {arm: evaluation_of_arm(arm) for arm in self.recipe.all_arms}
        return {arm: stage for arm, stage in stages.items() if stage in self.done}

    def metrics(self, stage: str, kind: str, cls: type[R]) -> list[R]:
        """Records of one kind from a finished stage's metrics."""
        if stage not in self.done:
            return []
        path = self.directory / stage / METRICS
        records = [record for record in read_metrics(path) if record.get("kind") == kind]
        return [as_record(record, cls, f"{path}: step {record['step']}") for record in records]
