"""Records of finished jobs, read from the files that the engine left."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from statistics import fmean, median
from typing import Any

from benchmarks.real_text.study import Job, Study
from synpro_engine.config import read_json, read_record
from synpro_engine.cycle.graph import Graph
from synpro_engine.cycle.plan import looked_at
from synpro_engine.cycle.run_layout import (
    CORPUS,
    EVALUATION,
    PRETRAIN,
    SYNTHETIC_TOKENS,
    TOKENIZE,
    TRAINING_RESULT,
    Round,
    evaluation_of_arm,
    held_out_shards,
)
from synpro_engine.cycle.stages import stage_times
from synpro_engine.cycle.steps.evaluation import Results
from synpro_engine.cycle.steps.training import Training
from synpro_engine.synth import read_yield
from synpro_engine.train.metrics import METRICS, read_metrics

Record = dict[str, Any]


def records_of(study: Study, job: Job) -> list[Record]:
    """What became of a job: a record of each seed."""
    return [_from_scratch(study, job)] if job.seed is not None else _of_arm(study, job.name)


def theta_of(study: Study) -> list[dict[str, float]]:
    """The losses on the way to theta, from which all arms go on."""
    return _curve(study.run / PRETRAIN)


def _from_scratch(study: Study, job: Job) -> Record:
    directory, recipe = study.directory(job), study.recipe(job)
    curve = _curve(directory / PRETRAIN)
    return {
        "bench": "real_text",
        "arm": job.name,
        "seed": job.seed,
        "losses": {"validation": curve[-1]["validation"]},
        "curve": curve,
        **_training(directory, PRETRAIN, recipe.pretrain.global_batch * recipe.model.seq_len),
        "settings": {name: getattr(recipe.pretrain, name).model_dump(mode="json") for name in ("optimizer", "dropout")},
    }


def _of_arm(study: Study, arm: str) -> list[Record]:
    whole, directory = study.recipe(), study.run
    own, graph = whole.of_arm(arm), looked_at(whole, directory)
    results = read_record(directory / evaluation_of_arm(arm) / EVALUATION, Results)
    texts = _texts(graph, arm, results)
    # Of theta too, for the lowest loss may lie there.
    theta, found = theta_of(study), list[Record]()
    for stage, training in graph.trainings.items():
        if training.arm != arm:
            continue
        seed = training.settings.seed
        rows = [row for row in results.held_out if (whole.seeds[0] if row.seed is None else row.seed) == seed]
        found.append(
            {
                "bench": "real_text",
                "arm": arm,
                "seed": seed,
                "losses": {row.text.removeprefix(held_out_shards("")): row.per_token for row in rows},
                "curve": [*theta[:-1], *_curve(directory / stage)],
                **_training(directory, stage, whole.pretrain.global_batch * whole.model.seq_len),
                "pool": _pool(training),
                **texts,
                "settings": {
                    "arm": whole.arms[arm].model_dump(mode="json", exclude_defaults=True),
                    "optimizer": own.pretrain.optimizer.model_dump(mode="json"),
                    "dropout": own.pretrain.dropout.model_dump(mode="json"),
                    "continued": own.continued.model_dump(mode="json", exclude_defaults=True),
                },
            }
        )
    return found


def _curve(stage: Path) -> list[dict[str, float]]:
    """Losses on the reference and the validation split along a training, nats a token."""
    evaluations = [line for line in read_metrics(stage / METRICS) if line["kind"] == "eval"]
    return [
        {"step": line["step"], "reference": line["reference_loss"], "validation": line["validation_loss"]}
        for line in evaluations
    ]


def _training(directory: Path, stage: str, step_tokens: int) -> Record:
    """How much was trained on, and how fast; seconds are of this stage, without evaluations."""
    done = read_json(directory / stage / TRAINING_RESULT)
    steps = [line for line in read_metrics(directory / stage / METRICS) if line["kind"] == "train"]
    rate = median(line["tokens_per_s"] for line in steps)
    unique = read_json(directory / TOKENIZE / "shards" / "train" / "stats.json")["tokens"]
    return {
        "unique_tokens": unique,
        "tokens": done["step"] * step_tokens,
        "windows": done["samples"],
        "tokens_per_s": rate,
        "training_seconds": len(steps) * step_tokens / rate,
    }


def _pool(training: Training) -> dict[str, dict[str, int]]:
    """Tokens of the synthetic text that there is to be read, by its source and operation."""
    pools = {name: stage / SYNTHETIC_TOKENS for name, stage in training.synthetic.items()}
    return {name: read_json(path) for name, path in pools.items() if path.exists()}


def _texts(graph: Graph, arm: str, results: Results) -> Record:
    """What was generated for an arm, before its filters; nothing of one that generates nothing."""
    made = graph.generated.get(Round(1, arm))
    if made is None:
        return {}
    times = {name: seconds for name, (seconds, _) in stage_times(graph.directory).items()}
    generated = {
        operation: {
            **read_yield(graph.directory / stage / CORPUS).by_operation[operation].model_dump(mode="json"),
            "stage_seconds": times.get(stage),
        }
        for operation, stage in made.items()
    }
    influence = {
        operation: {"generated": _mean(one.generated), "sources": _mean(one.sources)}
        for operation, one in results.influence.items()
    }
    diversity = {name: asdict(one) for name, one in results.diversity.items()}
    tuned = {operation: _tuning(graph, stage) for operation, stage in _tunings(graph, arm).items()}
    return {"generated": generated, "influence": influence, "diversity": diversity, "tuning": tuned}


def _mean(values: tuple[float | None, ...]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known else None


def _tunings(graph: Graph, arm: str) -> dict[str, str]:
    """By operation: the stages that tuned an arm's generators."""
    names = {stage.name for stage in graph.stages if stage.command == "tune"}
    operations = graph.recipe.of_arm(arm).tune
    return {one: name for one in operations if (name := Round(1, arm).tune(one)) in names}


def _tuning(graph: Graph, stage: str) -> Record:
    """Seconds of its steps, tokens drawn in them, and what it did to the rewards of slices that never train."""
    lines = read_metrics(graph.directory / stage / METRICS)
    steps = [line for line in lines if line["kind"] == "tune"]
    measured = [line for line in lines if line["kind"] == "held_out"]
    last = measured[-1] if measured else {}
    return {
        "steps": len(steps),
        "seconds": sum(value for line in steps for key, value in line.items() if key.startswith("seconds/")),
        "sampled_tokens": sum(line["tokens"] for line in steps),
        "rewards": [line["reward"] for line in steps],
        "held_out": {key: value for key, value in last.items() if key not in ("kind", "step", "time")},
    }
