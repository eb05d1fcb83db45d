"""How the multiple-choice questions of held-out tasks were answered while training."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from synpro_engine.cycle.run_layout import ASKED, PRETRAIN, held_out_shards, questions_path
from synpro_engine.cycle.summaries.arms import name_of
from synpro_engine.cycle.summaries.finished_run import FinishedRun
from synpro_engine.data.choices import read_questions
from synpro_engine.report import Downstream, QuestionsAsked, TaskCurve, TaskResult, join_task_curves
from synpro_engine.train.metrics import METRICS, read_metrics

_NONE = (
    "No multiple-choice questions are asked: a set of `held_out` with a `choices_field` and `pretrain.tasks_every` ask"
    " them (docs/corpus.md)"
)
_MEASURES = ("accuracy", "accuracy_per_byte", "bits_per_byte")


def downstream(run: FinishedRun) -> Downstream:
    """Of pretraining and each arm; before either is finished, what is asked."""
    tasks = run.recipe.asked
    if not tasks:
        return Downstream(missing=_NONE)
    if ASKED not in run.done or PRETRAIN not in run.done:
        return Downstream()
    return Downstream(
        asked=tuple(_asked(run, task) for task in tasks),
        curves=tuple(curve for task in tasks for curve in _curves(run, task)),
        ends=tuple(end for task in tasks for end in _ends(run, task)),
    )


def _asked(run: FinishedRun, task: str) -> QuestionsAsked:
    found = read_questions(questions_path(run.directory / ASKED, held_out_shards(task)), start_id=0)
    return QuestionsAsked(task=task, questions=len(found.questions), chance=found.chance)


def _curves(run: FinishedRun, task: str) -> Iterator[TaskCurve]:
    yield from filter(None, [_curve(run, PRETRAIN, task, None)])
    for arm in run.recipe.all_arms:
        whole: TaskCurve | None = None
        for stage in run.trained(arm):
            curve = _curve(run, stage, task, name_of(run, arm))
            whole = whole if curve is None else join_task_curves(whole, curve)
        if whole is not None:
            yield whole


def _curve(run: FinishedRun, stage: str, task: str, name: str | None) -> TaskCurve | None:
    """None where nothing was measured, or nothing that is finite."""
    looks = [look for look in _looks(run, stage) if all(look.get(f"{task}/{one}") is not None for one in _MEASURES)]
    if not looks:
        return None
    values = {one: tuple(look[f"{task}/{one}"] for look in looks) for one in _MEASURES}
    return TaskCurve(task=task, name=name, steps=tuple(look["step"] for look in looks), **values)


def _looks(run: FinishedRun, stage: str) -> list[dict[str, Any]]:
    return [record for record in read_metrics(run.directory / stage / METRICS) if record.get("kind") == "tasks"]


def _ends(run: FinishedRun, task: str) -> Iterator[TaskResult]:
    """At the end of pretraining, and of each arm with each of its seeds."""
    seeds = run.recipe.seeds
    stages = [("at the plateau", seeds[0] if seeds else None, PRETRAIN)]
    for arm in run.recipe.all_arms:
        for seed in run.recipe.arm_seeds:
            if trained := run.trained(arm, seed):
                own = seed if seed is not None or not seeds else seeds[0]
                stages.append((name_of(run, arm), own, trained[-1]))
    for name, seed, stage in stages:
        if looks := _looks(run, stage):
            values = {one: looks[-1].get(f"{task}/{one}") for one in _MEASURES}
            yield TaskResult(task=task, name=name, seed=seed, **values)
