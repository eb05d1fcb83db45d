"""Losses of the arms after the plateau."""

from __future__ import annotations

from synpro_engine.cycle.run_layout import REPEAT, Round
from synpro_engine.cycle.summaries.finished_run import FinishedRun
from synpro_engine.cycle.summaries.pretraining import curves
from synpro_engine.report import Arms, Curve, CurveKind

SYNTHETIC_ARM, REPEAT_ARM = "organic + synthetic", "repeat organic"


def arms(run: FinishedRun) -> Arms:
    """Both arms; the rounds of the synthetic one are put end to end."""
    synthetic: dict[CurveKind, Curve] = {}
    for number in run.rounds:
        for curve in curves(run, Round(number).arm, SYNTHETIC_ARM):
            before = synthetic.get(curve.kind)
            synthetic[curve.kind] = curve if before is None else _joined(before, curve)
    return Arms(
        curves=(*synthetic.values(), *curves(run, REPEAT, REPEAT_ARM)),
        held_out=run.results().held_out,
    )


def _joined(before: Curve, curve: Curve) -> Curve:
    # A round's first evaluation repeats the last one of the round before.
    points = [point for point in zip(curve.steps, curve.loss, strict=True) if point[0] > before.steps[-1]]
    return Curve(
        name=curve.name,
        kind=curve.kind,
        steps=(*before.steps, *(step for step, _ in points)),
        loss=(*before.loss, *(loss for _, loss in points)),
    )
