"""Reading a run's directory: which stages are finished, and what they wrote. Computes nothing."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TypeVar

from synpro_engine.config import Record, as_record, read_json, read_record, verify_artifact
from synpro_engine.cycle.recipe import Recipe
from synpro_engine.cycle.run_layout import EVALUATE, EVALUATION
from synpro_engine.cycle.steps.evaluation import Results
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

    @property
    def rounds(self) -> range:
        """Numbers of the rounds, from 1."""
        return range(1, self.recipe.rounds + 1)

    def label(self, operation: str, round_number: int) -> str:
        """How the report names an operation of one round."""
        return operation if self.recipe.rounds == 1 else f"{operation}, round {round_number}"

    def record(self, stage: str, name: str, cls: type[R]) -> R:
        """A finished stage's JSON file."""
        return read_record(self.directory / stage / name, cls)

    def counts(self, stage: str, name: str) -> dict[str, int]:
        """A stage's JSON file of counts by name; empty while the stage is not finished."""
        if stage not in self.done:
            return {}
        path = self.directory / stage / name
        return as_record({"counts": read_json(path)}, _Counts, str(path)).counts

    def results(self) -> Results:
        """What the evaluate stage measured."""
        return self.record(EVALUATE, EVALUATION, Results) if EVALUATE in self.done else Results()

    def metrics(self, stage: str, kind: str, cls: type[R]) -> list[R]:
        """Records of one kind from a finished stage's metrics."""
        if stage not in self.done:
            return []
        path = self.directory / stage / METRICS
        records = [record for record in read_metrics(path) if record.get("kind") == kind]
        return [as_record(record, cls, f"{path}: step {record['step']}") for record in records]
