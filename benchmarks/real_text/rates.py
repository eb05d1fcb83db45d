"""How fast this machine does the study's parts, by a small piece of it, and how long all of it will take."""

from __future__ import annotations

import resource
import shutil
import time
from collections.abc import Mapping
from dataclasses import replace
from statistics import median
from typing import Any

from benchmarks.real_text.commands import Commands
from benchmarks.real_text.outcome import records_of
from benchmarks.real_text.study import FROM_SCRATCH, Job, Study
from synpro_engine.cycle import Recipe

Record = Mapping[str, Any]
_STEPS, _TUNE_STEPS, _SLICES = 24, 3, 64


def measure(study: Study, commands: Commands) -> Record:
    """Run the first arm that is prompted and the first that is tuned, in small, and tell how fast each part went."""
    whole = study.recipe()
    small = [
        f"pretrain.max_steps={_STEPS}",
        f"continued.steps={_STEPS // 2}",
        f"seeds=[{whole.seeds[0]}]",
        f"generate.max_slices={_SLICES}",
        *(f"tune.{name}.{key}" for name in whole.tune for key in (f"steps={_TUNE_STEPS}", "held_out.every=0")),
    ]
    study = replace(study, place=study.place / "rates", tuned=(*study.tuned, *small))
    # What is finished would be read and not measured.
    shutil.rmtree(study.place, ignore_errors=True)
    found: dict[str, Any] = {}
    began, cpu = time.monotonic(), _cpu_seconds()
    for text in ("prompted", "tuned"):
        name = next(name for name, arm in whole.arms.items() if arm.text == text)
        for command in study.commands(Job(name)):
            commands.run(command)
        found[text] = records_of(study, Job(name))[0]
    # Others may have had the machine too: in the time that these processes had, seconds are those of a core of its own.
    share = min(1.0, (_cpu_seconds() - cpu) / (time.monotonic() - began))
    prompted, tuned = (found[text]["generated"] for text in ("prompted", "tuned"))
    tuning = list(found["tuned"]["tuning"].values())
    rates = {
        "student_tokens_per_s": found["prompted"]["tokens_per_s"] / share,
        "tuning_step_seconds": median(one["seconds"] / one["steps"] for one in tuning) * share,
        "prompted_slice_seconds": _by_slice(prompted) * share,
        "tuned_slice_seconds": _by_slice(tuned) * share,
        "sampled_tokens_per_s": sum(one["completion_tokens"] for one in prompted.values())
        / sum(one["stage_seconds"] for one in prompted.values())
        / share,
    }
    return {"bench": "real_text_rates", "cpu_share": share, **rates, "hours": hours(whole, rates)}


def _cpu_seconds() -> float:
    """Of processes that ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _by_slice(generated: Mapping[str, Mapping[str, Any]]) -> float:
    """Of all completions of a slice, with loading and scores."""
    return sum(one["stage_seconds"] for one in generated.values()) / _SLICES


def hours(recipe: Recipe, rates: Mapping[str, float]) -> dict[str, float]:
    """By part: the hours that a whole study takes, evaluations left out."""
    step = recipe.pretrain.global_batch * recipe.model.seq_len
    theta, arm, seeds = recipe.pretrain.max_steps, recipe.continued.steps, len(recipe.seeds)
    steps = theta + len(recipe.arms) * seeds * arm + len(FROM_SCRATCH) * seeds * (theta + arm)
    tuned = [name for name, one in recipe.arms.items() if one.text == "tuned"]
    slices = recipe.generate.max_slices or 0
    return {
        "training": steps * step / rates["student_tokens_per_s"] / 3600,
        "tuning": len(tuned) * sum(one.steps for one in recipe.tune.values()) * rates["tuning_step_seconds"] / 3600,
        # Arms that are only prompted share what is generated.
        "generation": slices * (rates["prompted_slice_seconds"] + len(tuned) * rates["tuned_slice_seconds"]) / 3600,
    }
