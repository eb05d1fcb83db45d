"""Losses of the arms after the plateau."""

from __future__ import annotations

from dataclasses import replace

from synpro_engine.cycle.run_layout import TITLES
from synpro_engine.cycle.summaries.finished_run import FinishedRun
from synpro_engine.cycle.summaries.pretraining import curves
from synpro_engine.report import Arms, Curve, CurveKind, HeldOutLoss, over_seeds


def name_of(run: FinishedRun, arm: str) -> str:
    """What the report calls an arm: by its name, and where the recipe names none by its text."""
    return arm if run.recipe.several else TITLES[arm]


def arms(run: FinishedRun) -> Arms:
    """All arms, over the seeds that have finished any of it; the rounds of one are put end to end."""
    shown: list[Curve] = []
    for arm in run.recipe.all_arms:
        by_kind: dict[CurveKind, list[Curve]] = {}
        for seed in run.recipe.arm_seeds:
            for kind, curve in _end_to_end(run, arm, seed).items():
                by_kind.setdefault(kind, []).append(curve)
        shown += [over_seeds(of_seeds) for of_seeds in by_kind.values()]
    organic = [name for name, arm in run.recipe.all_arms.items() if arm.text == "organic"]
    return Arms(
        curves=tuple(shown),
        held_out=tuple(_held_out(run)),
        read_otherwise=tuple(name_of(run, arm) for arm in run.recipe.all_arms if _reads_otherwise(run, arm)),
        compared_with=organic[0] if organic and run.recipe.several else None,
    )


def _end_to_end(run: FinishedRun, arm: str, seed: int | None) -> dict[CurveKind, Curve]:
    joined: dict[CurveKind, Curve] = {}
    for stage in run.trained(arm, seed):
        for curve in curves(run, stage, name_of(run, arm)):
            before = joined.get(curve.kind)
            joined[curve.kind] = curve if before is None else _joined(before, curve)
    return joined


def _reads_otherwise(run: FinishedRun, arm: str) -> bool:
    return run.recipe.of_arm(arm).pretrain.separate_documents != run.recipe.pretrain.separate_documents


def _held_out(run: FinishedRun) -> list[HeldOutLoss]:
    """Of each arm and seed, the plateau first; without arms and seeds there is nothing to tell by."""
    seeds, rows = run.recipe.seeds, [row for results in run.results().values() for row in results.held_out]
    return [replace(row, seed=seeds[0]) if seeds and row.seed is None else row for row in rows]


def _joined(before: Curve, curve: Curve) -> Curve:
    # A round's first evaluation repeats the last one of the round before.
    points = [point for point in zip(curve.steps, curve.loss, strict=True) if point[0] > before.steps[-1]]
    return Curve(
        name=curve.name,
        kind=curve.kind,
        steps=(*before.steps, *(step for step, _ in points)),
        loss=(*before.loss, *(loss for _, loss in points)),
    )
