"""Loss curves of a training stage, and how pretraining ended."""

from __future__ import annotations

from collections.abc import Sequence

from synpro_engine.config import Record
from synpro_engine.cycle.run_layout import PRETRAIN, TRAINING_RESULT
from synpro_engine.cycle.steps.training import ALONE, TrainingResult
from synpro_engine.cycle.summaries.finished_run import FinishedRun
from synpro_engine.report import Curve, CurveKind, Plateau, Pretraining
from synpro_engine.train.metrics import METRICS, read_metrics


class _Trained(Record):
    step: int
    loss: float | None  # not finite


class _Evaluated(Record):
    step: int
    reference_loss: float | None
    validation_loss: float | None


class _Judged(Record):
    evaluations: int


def pretraining(run: FinishedRun) -> Pretraining:
    """Losses before the plateau, and the plateau."""
    return Pretraining(curves=curves(run, PRETRAIN), plateau=_plateau(run))


def curves(run: FinishedRun, stage: str, name: str | None = None) -> tuple[Curve, ...]:
    """Training, reference and validation loss of one stage over its steps, named `name` or by their kind."""
    train, evaluated = run.metrics(stage, "train", _Trained), run.metrics(stage, "eval", _Evaluated)
    points_by_kind: dict[CurveKind, list[tuple[int, float]]] = {
        "train": [(r.step, r.loss) for r in train if r.loss is not None],
        "reference": [(r.step, r.reference_loss) for r in evaluated if r.reference_loss is not None],
        "validation": [(r.step, r.validation_loss) for r in evaluated if r.validation_loss is not None],
    }
    made = [_curve(name or kind, kind, points) for kind, points in points_by_kind.items()]
    if name is None:
        made += [_curve(reference, "reference", points) for reference, points in _alone(run, stage).items()]
    return tuple(curve for curve in made if curve.steps)


def _curve(name: str, kind: CurveKind, points: Sequence[tuple[int, float]]) -> Curve:
    return Curve(name=name, kind=kind, steps=tuple(x for x, _ in points), loss=tuple(y for _, y in points))


def _alone(run: FinishedRun, stage: str) -> dict[str, list[tuple[int, float]]]:
    """The loss of each reference where there are several, by its name."""
    points: dict[str, list[tuple[int, float]]] = {}
    for record in read_metrics(run.directory / stage / METRICS):
        for key, loss in record.items():
            if record["kind"] == "eval" and key.endswith(ALONE) and loss is not None:
                points.setdefault(key.removesuffix(ALONE), []).append((record["step"], loss))
    return points


def _plateau(run: FinishedRun) -> Plateau | None:
    """Where pretraining ended, and the evaluations that decided it."""
    if PRETRAIN not in run.done:
        return None
    result = run.record(PRETRAIN, TRAINING_RESULT, TrainingResult)
    judged = run.metrics(PRETRAIN, "plateau", _Judged)
    window = judged[-1].evaluations if judged else 1
    evaluated = run.metrics(PRETRAIN, "eval", _Evaluated)
    decisive = [(r.step, r.reference_loss) for r in evaluated if r.reference_loss is not None][-window:]
    return Plateau(
        step=result.step,
        stopped=result.plateau,
        reason=result.reason,
        window_steps=tuple(step for step, _ in decisive),
        window_losses=tuple(loss for _, loss in decisive),
    )
