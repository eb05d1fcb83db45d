"""Reading a run's directory: which stages are finished, and what they wrote. Computes nothing."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from synpro_engine.config.artifact import MANIFEST
from synpro_engine.cycle.evaluation import RESULTS
from synpro_engine.cycle.recipe import Recipe
from synpro_engine.train.metrics import METRICS, read_metrics


class FinishedRun:
    """The finished stages of one run; of the others every part is empty."""

    def __init__(self, directory: Path, recipe: Recipe, stages: Iterable[str]) -> None:
        """`stages` are the names of all stages that the recipe has."""
        self.directory, self.recipe = directory, recipe
        self.done = {stage for stage in stages if (directory / stage / MANIFEST).exists()}

    @property
    def rounds(self) -> range:
        """Numbers of the rounds, from 1."""
        return range(1, self.recipe.rounds + 1)

    def json(self, stage: str, name: str) -> dict[str, Any]:
        """A stage's JSON file; empty while the stage is not finished."""
        return json.loads((self.directory / stage / name).read_text(encoding="utf-8")) if stage in self.done else {}

    def results(self) -> dict[str, Any]:
        """What the evaluate stage measured."""
        return self.json("evaluate", RESULTS)

    def metrics(self, stage: str, kind: str) -> list[dict[str, Any]]:
        """Records of one kind from a finished stage's metrics."""
        if stage not in self.done:
            return []
        return [r for r in read_metrics(self.directory / stage / METRICS) if r["kind"] == kind]
