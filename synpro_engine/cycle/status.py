"""How far a run is, from what lies in its directory: whoever asks takes no part in it, and changes nothing."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from synpro_engine.config import UserError, first_difference, partial_path, read_record
from synpro_engine.config.artifact import MANIFEST
from synpro_engine.config.lock import is_held
from synpro_engine.cycle.graph import Graph
from synpro_engine.cycle.plan import looked_at
from synpro_engine.cycle.recipe import Recipe
from synpro_engine.cycle.run_layout import CORPUS, REPEAT, TRAINING_RESULT
from synpro_engine.cycle.run_lock import stored_recipe
from synpro_engine.cycle.stages import Stage, stage_times
from synpro_engine.cycle.steps.training import TrainingResult
from synpro_engine.synth import work_directory, work_status
from synpro_engine.synth.generate import SETTINGS
from synpro_engine.train.metrics import METRICS, read_metrics

_LATELY = 20  # steps that a rate is taken over
State = Literal["done", "at work", "stopped", "waiting"]
_SILENT_S = 120.0  # without a line of metrics: nobody is at work
_LOSS = "_loss"


@dataclass(frozen=True, kw_only=True)
class StageStatus:
    """One stage. `done`, `of`: steps or prompts of one that is at work, None where it does not count any."""

    name: str
    state: State
    seconds: float | None = None
    """That it took, or has taken; of one that waits None."""
    done: int | None = None
    of: int | None = None
    seconds_left: float | None = None
    """Of a stage that is at work, by its rate; of one that waits, by what its like in another arm or round took."""


@dataclass(frozen=True, kw_only=True)
class ArmStatus:
    """One arm with one seed: its newest held-out losses in nats per token, where there are any yet."""

    name: str
    seed: int | None
    stage: str
    step: int
    losses: dict[str, float | None]


@dataclass(frozen=True, kw_only=True)
class RunStatus:
    """A run."""

    stages: tuple[StageStatus, ...]
    arms: tuple[ArmStatus, ...]
    whole: bool
    """Whether all stages are known: else more may follow."""
    changed: str | None = None
    """What the recipe that was asked by says otherwise than the run's own; `synpro run` would refuse it."""

    @property
    def is_done(self) -> bool:
        """Whether nothing is left to do."""
        return self.whole and all(stage.state == "done" for stage in self.stages)

    @property
    def seconds_left(self) -> float | None:
        """Of all stages that are known; None where one cannot be told."""
        left = [stage.seconds_left for stage in self.stages if stage.state != "done"]
        return sum(seconds or 0.0 for seconds in left) if None not in left else None


def run_status(recipe: Recipe, directory: Path) -> RunStatus:
    """How far the run of this recipe in a directory is; UserError where there is none."""
    if not directory.is_dir():
        raise UserError(f"{directory}: no such run; --dir names another one")
    graph = looked_at(recipe, directory)
    took = {name: seconds for name, (seconds, _) in stage_times(directory).items()}
    like = {_kind(name): seconds for name, seconds in took.items()}
    held = is_held(directory)
    stages = [_stage(graph, stage, took, like, held) for stage in graph.stages]
    stored = stored_recipe(directory)
    difference = None if stored is None else first_difference(stored.recorded(), recipe.recorded())
    return RunStatus(
        stages=tuple(stages),
        arms=tuple(_arms(graph)),
        whole=graph.whole,
        changed=None if difference is None else str(difference),
    )


def _kind(name: str) -> str:
    """What stages of one length are called: the arm that repeats organic text trains as long as the others do."""
    kind = name.rpartition("/")[2].partition("-seed-")[0]
    return "continue" if kind == REPEAT else kind


def _stage(graph: Graph, stage: Stage, took: Mapping[str, float], like: Mapping[str, float], held: bool) -> StageStatus:
    """held: whether a process has the run's directory."""
    directory = graph.directory
    if (directory / stage.name / MANIFEST).exists():
        return StageStatus(name=stage.name, state="done", seconds=took.get(stage.name))
    partial, usual = partial_path(directory / stage.name), like.get(_kind(stage.name))
    if not partial.exists():
        return StageStatus(name=stage.name, state="waiting", seconds_left=usual)
    if "/generate-" in stage.name:
        return _generating(stage.name, partial, usual, held)
    return _stepping(graph, stage, partial, usual, held)


def _generating(name: str, partial: Path, usual: float | None, held: bool) -> StageStatus:
    work = work_directory(partial / CORPUS)
    if not (work / SETTINGS).exists():
        return StageStatus(name=name, state="at work" if held else "stopped", seconds_left=usual)
    found = work_status(work)
    state: State = "at work" if found.tokens_per_s is not None or found.done == found.prompts else "stopped"
    return StageStatus(name=name, state=state, done=found.done, of=found.prompts, seconds_left=found.seconds_left)


def _stepping(graph: Graph, stage: Stage, partial: Path, usual: float | None, held: bool) -> StageStatus:
    """Of a stage whose steps stand in its metrics, or of one that tells nothing of how far it is."""
    records = read_metrics(partial / METRICS)
    steps = [record for record in records if record.get("kind") in ("train", "tune") and "time" in record]
    of = _steps_of(graph, stage)
    if not steps or of is None:
        return StageStatus(name=stage.name, state="at work" if held else "stopped", seconds_left=usual)
    done = steps[-1]["step"] - _begin(graph, stage)
    lately = steps[-_LATELY:]
    span, made = lately[-1]["time"] - lately[0]["time"], lately[-1]["step"] - lately[0]["step"]
    left = (of - done) * span / made if made and span > 0 else None
    lives = held and time.time() - records[-1]["time"] < _SILENT_S + 3 * span
    state: State = "at work" if lives else "stopped"
    return StageStatus(name=stage.name, state=state, done=done, of=of, seconds_left=left)


def _steps_of(graph: Graph, stage: Stage) -> int | None:
    """The most steps that a stage makes; None of one that makes none."""
    if stage.name in graph.trainings:
        return graph.trainings[stage.name].settings.pretrain.max_steps
    operation = _kind(stage.name).removeprefix("tune-")
    tune = graph.recipes[stage.name].tune.get(operation)
    return None if tune is None or stage.command != "tune" else tune.steps


def _begin(graph: Graph, stage: Stage) -> int:
    """The step that a stage goes on from."""
    start = graph.trainings[stage.name].start if stage.name in graph.trainings else None
    return 0 if start is None else read_record(start / TRAINING_RESULT, TrainingResult).step


def _arms(graph: Graph) -> Iterator[ArmStatus]:
    """The newest losses of each arm and seed, those of the plateau first."""
    newest: dict[tuple[str, int | None], str] = {}
    for name, training in graph.trainings.items():
        if _metrics(graph.directory / name).exists():
            seed = training.settings.seed if graph.recipe.seeds else None
            newest["pretraining" if training.arm is None else training.arm, seed] = name
    for (arm, seed), stage in newest.items():
        evaluated = [r for r in read_metrics(_metrics(graph.directory / stage)) if r.get("kind") == "eval"]
        for last in evaluated[-1:]:
            losses = {key.removesuffix(_LOSS): last[key] for key in last if key.endswith(_LOSS)}
            yield ArmStatus(name=arm, seed=seed, stage=stage, step=last["step"], losses=losses)


def _metrics(stage: Path) -> Path:
    """Of a finished stage, or of one that is at work."""
    return (stage if stage.exists() else partial_path(stage)) / METRICS
