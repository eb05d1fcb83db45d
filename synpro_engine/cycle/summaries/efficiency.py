"""Data efficiency of a run's models, where its recipe has a table to go by."""

from __future__ import annotations

import math
from collections.abc import Iterator

from synpro_engine.cycle.run_layout import PRETRAIN, TOKENIZE, shards_path
from synpro_engine.cycle.summaries.finished_run import FinishedRun
from synpro_engine.cycle.summaries.pretraining import curves
from synpro_engine.data import read_shard_stats
from synpro_engine.evaluate import data_efficiency
from synpro_engine.report import DataEfficiency


def efficiencies(run: FinishedRun) -> tuple[DataEfficiency, ...]:
    """Of each arm but oracles, which had more text; before these are measured, of pretraining's end.

    None without a table.
    """
    config = run.recipe.evaluate.data_efficiency
    if config is None or PRETRAIN not in run.done:
        return ()
    there = config.unique_tokens or read_shard_stats(shards_path(run.directory / TOKENIZE, "train")).tokens
    return tuple(
        DataEfficiency(name=name, value=str(data_efficiency(loss, config.table, there)), unique_tokens=there)
        for name, loss in _losses(run)
        if math.isfinite(loss)
    )


def _losses(run: FinishedRun) -> Iterator[tuple[str, float]]:
    oracles = {name for name, arm in run.recipe.arms.items() if arm.text == "unique"}
    held_out = [row for of in run.results().values() for row in of.held_out if row.name not in oracles]
    measured = [row for row in held_out if row.text == "validation"]
    for row in measured:
        if row.per_token is not None:
            yield row.name if row.seed is None else f"{row.name}, seed {row.seed}", row.per_token
    for curve in curves(run, PRETRAIN) if not measured else ():
        if curve.kind == "validation":
            yield "pretraining", curve.loss[-1]
