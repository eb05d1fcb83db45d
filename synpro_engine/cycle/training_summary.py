"""The report's part on training: models, loss curves, the plateau, where the tokens came from."""

from __future__ import annotations

from synpro_engine.config import Record, UserError
from synpro_engine.cycle.finished import FinishedRun
from synpro_engine.cycle.pretraining import ORGANIC, TrainingResult
from synpro_engine.cycle.run_layout import (
    CHECKPOINT,
    IMPORT,
    PRETRAIN,
    REPEAT,
    SYNTHETIC_TOKENS,
    TOKENIZE,
    TRAINING_RESULT,
    Round,
    shards_path,
)
from synpro_engine.data import read_shard_stats
from synpro_engine.report import ArmTokens, Curve, CurveKind, ModelInfo, PlateauInfo, TokenAccount
from synpro_engine.train.checkpoint import checkpoint_model_config


class _Trained(Record):
    step: int
    loss: float | None  # not finite


class _Evaluated(Record):
    step: int
    reference_loss: float | None
    validation_loss: float | None


class _Judged(Record):
    evaluations: int


SYNTHETIC_ARM, REPEAT_ARM = "organic + synthetic", "repeat organic"


def models(run: FinishedRun) -> tuple[ModelInfo, ...]:
    """The pretrained model and the generator."""
    shapes = [("pretrained", run.recipe.model)]
    if IMPORT in run.done:
        shapes.append(("generator", checkpoint_model_config(run.directory / IMPORT / CHECKPOINT)))
    return tuple(
        ModelInfo(
            role=role,
            description=f"{m.family}, {m.layers} blocks, width {m.d_model}, vocabulary {m.vocab_size}",
            parameters=m.parameter_count(),
        )
        for role, m in shapes
    )


def curves(run: FinishedRun, stage: str, name: str | None = None) -> tuple[Curve, ...]:
    """Training, reference and validation loss of one stage over its steps, named `name` or by their kind."""
    train, evaluated = run.metrics(stage, "train", _Trained), run.metrics(stage, "eval", _Evaluated)
    found: dict[CurveKind, list[tuple[int, float]]] = {
        "train": [(r.step, r.loss) for r in train if r.loss is not None],
        "reference": [(r.step, r.reference_loss) for r in evaluated if r.reference_loss is not None],
        "validation": [(r.step, r.validation_loss) for r in evaluated if r.validation_loss is not None],
    }
    found = {kind: [point for point in points if point[1] is not None] for kind, points in found.items()}
    return tuple(
        Curve(name=name or kind, kind=kind, x=tuple(x for x, _ in points), loss=tuple(y for _, y in points))
        for kind, points in found.items()
        if points
    )


def arms(run: FinishedRun) -> tuple[Curve, ...]:
    """Both arms after the plateau; the rounds of the synthetic one are put end to end."""
    synthetic = [Round(number).arm for number in run.rounds]
    joined: list[Curve] = []
    for stage in synthetic:
        for curve in curves(run, stage, SYNTHETIC_ARM):
            before = next((c for c in joined if c.kind == curve.kind), None)
            if before is not None:
                joined.remove(before)
                # A round's first evaluation repeats the last one of the round before.
                fresh = [(x, y) for x, y in zip(curve.x, curve.loss, strict=True) if x > before.x[-1]]
                xs, ys = (*before.x, *(p[0] for p in fresh)), (*before.loss, *(p[1] for p in fresh))
                curve = Curve(name=curve.name, kind=curve.kind, x=xs, loss=ys)
            joined.append(curve)
    return (*joined, *curves(run, REPEAT, REPEAT_ARM))


def plateau(run: FinishedRun) -> PlateauInfo | None:
    """Where pretraining ended, and the evaluations that decided it."""
    if PRETRAIN not in run.done:
        return None
    result, window = run.record(PRETRAIN, TRAINING_RESULT, TrainingResult), 1
    judged = run.metrics(PRETRAIN, "plateau", _Judged)
    if judged:
        window = judged[-1].evaluations
    evaluated = run.metrics(PRETRAIN, "eval", _Evaluated)
    seen = [(r.step, r.reference_loss) for r in evaluated if r.reference_loss is not None][-window:]
    return PlateauInfo(
        x=result.step,
        step=result.step,
        stopped=result.plateau,
        reason=result.reason,
        window_steps=tuple(step for step, _ in seen),
        window_losses=tuple(loss for _, loss in seen),
    )


def tokens(run: FinishedRun) -> TokenAccount | None:
    """Where the training tokens came from."""
    if PRETRAIN not in run.done:
        return None
    synthetic: dict[str, int] = {}
    for number in run.rounds:
        for operation, count in run.counts(Round(number).shards, SYNTHETIC_TOKENS).items():
            synthetic[operation] = synthetic.get(operation, 0) + count
    seen = _seen(run, PRETRAIN)[ORGANIC]
    arms = []
    for name, stage in ((SYNTHETIC_ARM, Round(run.recipe.rounds).arm), (REPEAT_ARM, REPEAT)):
        if stage in run.done:
            given = _seen(run, stage)
            organic = given.pop(ORGANIC) - seen
            arms.append(ArmTokens(name=name, organic=organic, synthetic=sum(given.values())))
    return TokenAccount(
        organic_unique=read_shard_stats(shards_path(run.directory / TOKENIZE, "train")).tokens,
        pretrain_seen=seen,
        synthetic=synthetic,
        arms=tuple(arms),
    )


def _seen(run: FinishedRun, stage: str) -> dict[str, int]:
    """Tokens trained on by source since the first step of pretraining."""
    samples = run.record(stage, TRAINING_RESULT, TrainingResult).samples
    if ORGANIC not in samples:
        raise UserError(f"{run.directory / stage / TRAINING_RESULT}: damaged (`samples` has no {ORGANIC})")
    return {name: count * run.recipe.model.seq_len for name, count in samples.items()}
