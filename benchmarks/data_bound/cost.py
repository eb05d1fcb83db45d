"""What trainings and sweeps cost, in FLOPs by count, Muon's iterations with them."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

from benchmarks.data_bound.arms import ARMS, BATCH_TOKENS, MEMBERS
from benchmarks.data_bound.runs import RECIPE
from benchmarks.optimizer_step import muon_flops
from synpro_engine.cycle import load_recipe
from synpro_engine.train.metrics import flops_per_token

Record = Mapping[str, Any]


@cache
def _of_a_step() -> tuple[float, float]:
    """Of the model's products, and of Muon's iterations."""
    recipe = load_recipe(str(RECIPE))
    return flops_per_token(recipe.model, recipe.model.seq_len) * BATCH_TOKENS, muon_flops(recipe)


def training_flops(record: Record) -> float:
    """Of one training; its teachers' forward passes count, their own trainings do not."""
    iterations = _of_a_step()[1] if record["optimizer"]["name"] == "muon" else 0.0
    return record["flops"] + iterations * record["tokens"] / BATCH_TOKENS


def arm_flops(name: str, record: Record, members: float) -> float:
    """Of one training of an arm, a student's with those of its teachers. members: of one of these."""
    return training_flops(record) + (len(MEMBERS) * members if ARMS[name].teachers is not None else 0.0)


def sweep_flops(sweep: Record) -> float:
    """Of all trials, as far as each came."""
    products, iterations = _of_a_step()
    return sum(
        (one["step"] or 0) * (products + iterations * (one["settings"].get("pretrain.optimizer.name") == "muon"))
        for one in sweep["trials"]
    )
