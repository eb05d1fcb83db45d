"""From a run's directory to the report: reads what the stages wrote, finished or not, and computes nothing new."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from synpro_engine.backend import platform
from synpro_engine.config import atomic_write_text, read_manifest, versions
from synpro_engine.config.artifact import MANIFEST
from synpro_engine.cycle.evaluation import RESULTS
from synpro_engine.cycle.pretraining import ORGANIC, RESULT
from synpro_engine.cycle.recipe import Recipe
from synpro_engine.cycle.stages import Stage, stage_times
from synpro_engine.cycle.synthesis import CORPUS
from synpro_engine.cycle.weights import CHECKPOINT
from synpro_engine.data import read_shard_stats
from synpro_engine.dist import Topology
from synpro_engine.evaluate import Diversity
from synpro_engine.report import (
    ArmTokens,
    Curve,
    DiversityRow,
    Environment,
    HeldOutLoss,
    InfluenceValues,
    ModelInfo,
    OperationYield,
    PlateauInfo,
    ReportData,
    RewardCurves,
    Sample,
    StageTiming,
    TokenAccount,
)
from synpro_engine.report.model import CurveKind
from synpro_engine.rl.trainer import SAMPLES
from synpro_engine.synth import read_yield
from synpro_engine.train.checkpoint import checkpoint_model_config
from synpro_engine.train.metrics import METRICS, read_metrics

ENVIRONMENT = "environment.json"
_SAMPLES_PER_OPERATION = 6
ARM_NAMES = {"continue": "organic + synthetic", "repeat": "repeat organic"}


def write_environment(directory: Path, topology: Topology) -> None:
    """Record what this run runs on; called by the rank that writes."""
    choices = (platform.attention(), platform.optimizer())
    facts = {
        "device": platform.device_name(),
        "layout": topology.layout,
        "versions": versions(),
        "implementations": {choice.part: f"{choice.uses}: {choice.why}" for choice in choices},
        "git_commit": _git_commit(),
    }
    atomic_write_text(directory / ENVIRONMENT, json.dumps(facts, indent=2) + "\n")


def _git_commit() -> str | None:
    """The commit of the source tree this package runs from; None outside a checkout."""
    here = Path(__file__).parent
    try:
        done = subprocess.run(["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, check=False)
    except FileNotFoundError:  # no git on this machine
        return None
    return done.stdout.strip() or None


def report_data(directory: Path, recipe: Recipe, stages: Sequence[Stage]) -> ReportData:
    """All that the page shows; parts of stages that are not finished stay empty."""
    done = {stage.name for stage in stages if (directory / stage.name / MANIFEST).exists()}
    run = _Finished(directory, recipe, done)
    return ReportData(
        title=f"SynPro cycle: {recipe.name}",
        recipe=recipe.name,
        created=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        config=recipe.model_dump(mode="json"),
        models=run.models(),
        stages=run.timings(stages),
        curve_unit="step",
        pretrain=run.curves("pretrain"),
        arms=run.arms(),
        plateau=run.plateau(),
        influence=run.influence(),
        rewards=run.rewards(),
        yields=run.yields(),
        samples=run.samples(),
        diversity=run.diversity(),
        tokens=run.tokens(),
        held_out=tuple(HeldOutLoss(**row) for row in run.results().get("held_out", ())),
        environment=run.environment(),
    )


class _Finished:
    """Reads the finished stages of one run."""

    def __init__(self, directory: Path, recipe: Recipe, done: set[str]) -> None:
        self.directory, self.recipe, self.done = directory, recipe, done

    def json(self, stage: str, name: str) -> dict[str, Any]:
        """A stage's JSON file; empty while the stage is not finished."""
        return json.loads((self.directory / stage / name).read_text(encoding="utf-8")) if stage in self.done else {}

    def results(self) -> dict[str, Any]:
        """What the evaluate stage measured."""
        return self.json("evaluate", RESULTS)

    def metrics(self, stage: str, kind: str, folder: str = "") -> list[dict[str, Any]]:
        """Records of one kind from a finished stage's metrics."""
        if stage not in self.done:
            return []
        return [r for r in read_metrics(self.directory / stage / folder / METRICS) if r["kind"] == kind]

    def models(self) -> tuple[ModelInfo, ...]:
        """The pretrained model and the generator."""
        shapes = [("pretrained", self.recipe.model)]
        if "import" in self.done:
            shapes.append(("generator", checkpoint_model_config(self.directory / "import" / CHECKPOINT)))
        return tuple(
            ModelInfo(
                role=role,
                description=f"{m.family}, {m.layers} blocks, width {m.d_model}, vocabulary {m.vocab_size}",
                parameters=m.parameter_count(),
            )
            for role, m in shapes
        )

    def timings(self, stages: Sequence[Stage]) -> tuple[StageTiming, ...]:
        """Seconds of every stage, and when it began."""
        times = stage_times(self.directory)
        first = min((ended - seconds for seconds, ended in times.values()), default=0.0)
        rows = []
        for stage in stages:
            if stage.name not in self.done:
                rows.append(StageTiming(name=stage.name, status="not run"))
                continue
            seconds, ended = times.get(stage.name, (None, None))
            rows.append(
                StageTiming(
                    name=stage.name,
                    status="done",
                    seconds=seconds,
                    start=None if seconds is None or ended is None else ended - seconds - first,
                    artifact=stage.name,
                    content_hash=read_manifest(self.directory / stage.name).content_hash,
                )
            )
        return tuple(rows)

    def curves(self, stage: str, name: str | None = None) -> tuple[Curve, ...]:
        """Training, reference and validation loss of one stage over its steps, named `name` or by their kind."""
        train, evaluated = self.metrics(stage, "train"), self.metrics(stage, "eval")
        found: dict[CurveKind, list[tuple[int, float]]] = {
            "train": [(r["step"], r["loss"]) for r in train],
            "reference": [(r["step"], r["reference_loss"]) for r in evaluated],
            "validation": [(r["step"], r["validation_loss"]) for r in evaluated],
        }
        return tuple(
            Curve(name=name or kind, kind=kind, x=tuple(x for x, _ in points), loss=tuple(y for _, y in points))
            for kind, points in found.items()
            if points
        )

    def arms(self) -> tuple[Curve, ...]:
        """Both arms after the plateau; the rounds of the synthetic one are put end to end."""
        synthetic = [f"round-{number}/continue" for number in range(1, self.recipe.rounds + 1)]
        joined: list[Curve] = []
        for stage in synthetic:
            for curve in self.curves(stage, ARM_NAMES["continue"]):
                before = next((c for c in joined if c.kind == curve.kind), None)
                if before is not None:
                    joined.remove(before)
                    # A round's first evaluation repeats the last one of the round before.
                    fresh = [(x, y) for x, y in zip(curve.x, curve.loss, strict=True) if x > before.x[-1]]
                    xs, ys = (*before.x, *(p[0] for p in fresh)), (*before.loss, *(p[1] for p in fresh))
                    curve = Curve(name=curve.name, kind=curve.kind, x=xs, loss=ys)
                joined.append(curve)
        return (*joined, *self.curves("repeat", ARM_NAMES["repeat"]))

    def plateau(self) -> PlateauInfo | None:
        """Where pretraining ended, and the evaluations that decided it."""
        if "pretrain" not in self.done:
            return None
        result, window = self.json("pretrain", RESULT), 1
        if self.recipe.pretrain.plateau is not None:
            window = 2 * self.recipe.pretrain.plateau.window
        seen = [(r["step"], r["reference_loss"]) for r in self.metrics("pretrain", "eval")][-window:]
        return PlateauInfo(
            x=result["step"],
            step=result["step"],
            stopped=result["plateau"],
            reason=result["reason"],
            window_steps=tuple(step for step, _ in seen),
            window_losses=tuple(loss for _, loss in seen),
        )

    def influence(self) -> tuple[InfluenceValues, ...]:
        """Of accepted texts and their sources, by operation."""
        return tuple(
            InfluenceValues(operation=name, sources=tuple(v["sources"]), generated=tuple(v["generated"]))
            for name, v in self.results().get("influence", {}).items()
            if v["generated"]
        )

    def rewards(self) -> tuple[RewardCurves, ...]:
        """One set of curves per tuned operation and round."""
        found = []
        for number, operation, records in self._tuned("grpo", ""):
            parts = [name for name in records[0] if name.startswith("reward/")]
            label = operation if self.recipe.rounds == 1 else f"{operation}, round {number}"
            found.append(
                RewardCurves(
                    operation=label,
                    steps=tuple(r["step"] for r in records),
                    total=tuple(r["reward"] for r in records),
                    parts={name.removeprefix("reward/"): tuple(r[name] for r in records) for name in parts},
                    weights=self.recipe.reward.weights(operation),
                    kl=tuple(r["kl"] for r in records),
                    lengths=tuple(r["length"] for r in records),
                )
            )
        return tuple(found)

    def _tuned(self, kind: str, folder: str) -> list[tuple[int, str, list[dict[str, Any]]]]:
        rounds = range(1, self.recipe.rounds + 1)
        found = [(n, op, self.metrics(f"round-{n}/tune-{op}", kind, folder)) for n in rounds for op in self.recipe.tune]
        return [entry for entry in found if entry[2]]

    def samples(self) -> tuple[Sample, ...]:
        """The last completions that tuning wrote down, with their rewards."""
        found = []
        for _, operation, records in self._tuned("sample", SAMPLES):
            for r in records[-_SAMPLES_PER_OPERATION:]:
                parts = {k.removeprefix("reward/"): v for k, v in r.items() if k.startswith("reward/")}
                accepted = r["reason"] is None
                found.append(
                    Sample(
                        operation=operation,
                        source_id=r["source_id"],
                        source=r["source"],
                        text=r["text"] if accepted else r["completion"],
                        accepted=accepted,
                        reason=r["reason"] or "",
                        total=r["reward"],
                        rewards=parts,
                    )
                )
        return tuple(found)

    def yields(self) -> tuple[OperationYield, ...]:
        """What generation accepted and refused, over all rounds."""
        found: dict[str, OperationYield] = {}
        for number in range(1, self.recipe.rounds + 1):
            for operation in self.recipe.generate.operations:
                stage = f"round-{number}/generate-{operation}"
                if stage not in self.done:
                    continue
                one = read_yield(self.directory / stage / CORPUS).by_operation[operation]
                name = operation if self.recipe.rounds == 1 else f"{operation}, round {number}"
                found[name] = OperationYield(operation=name, kept=one.accepted, rejects=one.rejected)
        return tuple(found.values())

    def diversity(self) -> tuple[DiversityRow, ...]:
        """Of the organic text and of each operation's."""
        rows: Mapping[str, Any] = self.results().get("diversity", {})
        return tuple(DiversityRow(name=name, measures=Diversity(**measures)) for name, measures in rows.items())

    def tokens(self) -> TokenAccount | None:
        """Where the training tokens came from."""
        if "pretrain" not in self.done:
            return None
        rounds = range(1, self.recipe.rounds + 1)
        synthetic: dict[str, int] = {}
        for number in rounds:
            for operation, count in self.json(f"round-{number}/shards", "tokens.json").items():
                synthetic[operation] = synthetic.get(operation, 0) + count
        seen = self._seen("pretrain")[ORGANIC]
        arms = []
        for name, stage in (("continue", f"round-{self.recipe.rounds}/continue"), ("repeat", "repeat")):
            if stage in self.done:
                given = self._seen(stage)
                organic = given.pop(ORGANIC) - seen
                arms.append(ArmTokens(name=ARM_NAMES[name], organic=organic, synthetic=sum(given.values())))
        return TokenAccount(
            organic_unique=read_shard_stats(self.directory / "tokenize" / "shards" / "train").tokens,
            pretrain_seen=seen,
            synthetic=synthetic,
            arms=tuple(arms),
        )

    def _seen(self, stage: str) -> dict[str, int]:
        """Tokens trained on by source since the first step of pretraining."""
        return {n: count * self.recipe.model.seq_len for n, count in self.json(stage, RESULT)["samples"].items()}

    def environment(self) -> Environment | None:
        """What the run ran on."""
        path = self.directory / ENVIRONMENT
        if not path.exists():
            return None
        return Environment(**json.loads(path.read_text()), seeds={"run": self.recipe.seed})
