"""Making the runs, each by the command that a user would give: what is there already is gone on with or left alone."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from itertools import combinations
from pathlib import Path
from typing import Any

from benchmarks.common.processes import end_as, ends_with_us
from benchmarks.data_bound.arms import ARMS, MEMBERS, SWEEPS, UNIQUE
from benchmarks.data_bound.losses import best_trial
from synpro_engine.config import read_json, read_records
from synpro_engine.cycle import load_recipe
from synpro_engine.cycle.run_layout import CONFIG, PRETRAIN, TOKENIZE, TRAINING_RESULT
from synpro_engine.sweep.outcome import TRIALS
from synpro_engine.sweep.study import TrialRecord
from synpro_engine.train.metrics import METRICS, flops_per_token, read_metrics

Record = Mapping[str, Any]
RECIPE = Path(__file__).with_name("recipe.yaml")


def _synpro(*arguments: str | Path) -> None:
    """Run a command of the engine, with its output shown. SystemExit where it fails."""
    command = [sys.executable, "-m", "synpro_engine", *map(str, arguments)]
    end_as(subprocess.run(command, preexec_fn=ends_with_us()).returncode, f"`synpro {arguments[0]}`")


def _run_of(place: Path, name: str, seed: int) -> Path:
    return place / name / f"seed-{seed}"


def sweep(place: Path, name: str) -> Record:
    """Tune; what each trial tried and came to."""
    asked, into = SWEEPS[name], place / "sweeps" / name
    over = [part for key in asked.over for part in ("--over", key)]
    length = ARMS[name].length
    _synpro("sweep", RECIPE, *length, *asked.settings, *over, "--trials", str(asked.trials), "--dir", into)
    trials = [trial.model_dump(mode="json") for trial in read_records(into / TRIALS, TrialRecord)]
    return {"bench": "data_bound_sweep", "sweep": name, "over": asked.over, "trials": trials}


def train(place: Path, name: str, seed: int, swept: Mapping[str, Record]) -> Record:
    """Train one arm by one seed; the losses on its way, and what it took. `swept` holds the sweeps' records by name."""
    arm, into = ARMS[name], _run_of(place, name, seed)
    settings = [*arm.length]
    if arm.sweep is not None:
        tuned = best_trial(swept[arm.sweep])["settings"]
        settings += [*SWEEPS[arm.sweep].settings, *(f"{key}={value}" for key, value in tuned.items())]
    settings += [*arm.settings, f"pretrain.seed={seed}"]
    if arm.unique != UNIQUE:  # losses a token compare under one vocabulary alone
        settings.append(f"tokenizer.path={_run_of(place, 'untuned', 1) / TOKENIZE / 'tokenizer'}")
    if arm.teachers is not None:
        models = ",".join(str(_run_of(place, arm.teachers, one) / PRETRAIN) for one in MEMBERS)
        settings.append(f"pretrain.distill.teachers=[{models}]")
    _synpro("pretrain", RECIPE, "--dir", into, *settings)
    return {"bench": "data_bound", "arm": name, "seed": seed, **_measured(into)}


def _measured(directory: Path) -> Record:
    """A finished run's numbers. Losses in nats a token; `flops` of training alone, teachers' forwards included."""
    recipe, done = load_recipe(str(directory / CONFIG)), read_json(directory / PRETRAIN / TRAINING_RESULT)
    evaluations = [line for line in read_metrics(directory / PRETRAIN / METRICS) if line["kind"] == "eval"]
    steps = [line for line in read_metrics(directory / PRETRAIN / METRICS) if line["kind"] == "train"]
    each, distill = flops_per_token(recipe.model, recipe.model.seq_len), recipe.pretrain.distill
    if distill is not None:
        each *= 1 + len(distill.teachers) / 3
    return {
        "unique_tokens": read_json(directory / TOKENIZE / "shards" / "train" / "stats.json")["tokens"],
        "tokens": done["tokens"],
        "parameters": recipe.model.parameter_count(),
        "flops": each * done["tokens"],
        "curve": [
            {"step": line["step"], "reference": line["reference_loss"], "validation": line["validation_loss"]}
            for line in evaluations
        ],
        "tokens_per_s": sorted(line["tokens_per_s"] for line in steps)[len(steps) // 2],
        "optimizer": recipe.pretrain.optimizer.model_dump(mode="json"),
        "dropout": recipe.pretrain.dropout.model_dump(mode="json"),
    }


def ensembles(place: Path) -> list[Record]:
    """What four of the models trained with all means say together: each four of those there are."""
    records = list[Record]()
    for seeds in combinations(ARMS["all"].seeds, len(MEMBERS)):
        told = place / "ensembles" / f"{'-'.join(map(str, seeds))}.json"
        if not told.exists():
            told.parent.mkdir(parents=True, exist_ok=True)
            _synpro("ensemble", *(_run_of(place, "all", seed) / PRETRAIN for seed in seeds), "--output", told)
        records.append({"bench": "data_bound_ensemble", "seeds": seeds, "loss": read_json(told)["loss"]["validation"]})
    return records
