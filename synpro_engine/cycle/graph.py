"""The stages of a run as they are put together, with what is alike standing there once, whoever asks for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from synpro_engine.config import json_text, read_record
from synpro_engine.config.artifact import MANIFEST
from synpro_engine.cycle.contents import Contents, places_of
from synpro_engine.cycle.recipe import Recipe
from synpro_engine.cycle.run_layout import DECISION, PRETRAIN, TRAINING_RESULT, Round
from synpro_engine.cycle.settings import StageSettings
from synpro_engine.cycle.stages import Stage, Work
from synpro_engine.cycle.steps.deciding import Decision
from synpro_engine.cycle.steps.training import Training, TrainingResult


@dataclass(frozen=True)
class Known:
    """What finished stages say of those to come."""

    further: Mapping[str, bool] = field(default_factory=dict)
    """By `decide` stage: whether another round follows."""
    ended: Mapping[str, int] = field(default_factory=dict)
    """By training stage that may end early: the step at which it did, counted from pretraining's first."""
    most: bool = False
    """Take it that every round follows and is as long as it may be: for who counts beforehand."""


def known_of(recipe: Recipe, directory: Path) -> Known:
    """What the finished stages in a run's directory say. For the rank that looks for all."""
    numbers = range(1, recipe.rounds + 1)
    rounds = [Round(number, name) for name, arm in recipe.all_arms.items() if arm.in_rounds for number in numbers]
    further, ended = {}, {}
    for decide in (this.decide for this in rounds if recipe.cycle.decides):
        if (directory / decide / MANIFEST).exists():
            further[decide] = read_record(directory / decide / DECISION, Decision).go_on
    for stage in (PRETRAIN, *(this.arm for this in rounds)) if recipe.open_ended else ():
        if (directory / stage / MANIFEST).exists() and (directory / stage / TRAINING_RESULT).exists():
            ended[stage] = read_record(directory / stage / TRAINING_RESULT, TrainingResult).step
    return Known(further=further, ended=ended)


class Graph:
    """Stages in their order, parents first. A stage that is like another one of its kind is that one."""

    def __init__(self, recipe: Recipe, directory: Path, ranks: int, contents: Contents, known: Known) -> None:
        self.recipe, self.directory, self.known = recipe, directory, known
        self.stages: list[Stage] = []
        self.trainings: dict[str, Training] = {}
        """By the training stage, in their order: what it is made from."""
        self.generated: dict[Round, dict[str, str]] = {}
        """By round and operation: the stages that generate."""
        self.shards: dict[Round, str] = {}
        """By round: the stage with its texts as tokens, which is another arm's where both make and choose the same."""
        self.measured: dict[str, int] = {}
        """By stage that evaluates: how many models."""
        self.evaluations: dict[str, str] = {}
        """By arm: the stage that evaluates it, which is another arm's where all of their stages are the same."""
        self.recipes: dict[str, Recipe] = {}
        """By stage: the recipe as its arm has it."""
        self.whole = False
        """Whether all stages of the run are known."""
        self._ranks, self._contents, self._alike = ranks, contents, dict[str, str]()
        self._places = places_of(recipe)

    def add(
        self,
        name: str,
        command: str,
        work: Work,
        settings: StageSettings,
        *parents: str,
        recipe: Recipe | None = None,
        arm: str | None = None,
        opens: frozenset[str] = frozenset(),
    ) -> str:
        """Add a stage under a name, unless its like is there; the name that it has. recipe: as the arm `arm` has it."""
        config, own = settings.recorded(), recipe or self.recipe
        # Digests stand in the settings, so that a changed file makes a stage stale in the way of a changed key.
        if name in self._contents:
            config["contents"] = self._contents[name]
        stage = Stage(
            name=name, command=command, work=work, config=config, parents=tuple(dict.fromkeys(parents)),
            seed=config.get("seed", self.recipe.seed), layout=own.layout_of(name, self._ranks), arm=arm, opens=opens,
        )  # fmt: skip
        # By the kind, which the last part of a name tells, and by all that its result depends on.
        # Places too: who looks from outside knows no digests, and must find the same stages.
        kind, places = name.rpartition("/")[2].partition("-seed-")[0], self._places.get(name, {})
        alike = json_text([kind, config, stage.parents, places])
        if alike not in self._alike:
            assert name not in self.recipes, f"two different stages are called {name}"
            self._alike[alike] = name
            self.stages.append(stage)
            self.recipes[name] = own
        return self._alike[alike]
