"""How fast a run goes, as given or as an earlier run's metrics say."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from synpro_engine.config import UserError
from synpro_engine.cycle.run_layout import PRETRAIN, round_folders
from synpro_engine.train.metrics import METRICS, read_metrics


@dataclass(frozen=True, kw_only=True)
class Rates:
    """Tokens a second of the whole job, measured or hoped for; None where unknown."""

    trained: float | None = None
    """In pretraining; every other pass goes at the same FLOPs a second."""
    sampled: float | None = None


def measured_rates(run: Path) -> Rates:
    """Medians over the steps of an earlier run, on as many ranks as it had; UserError where it shows none."""
    pretraining = run / PRETRAIN / METRICS
    trained = [r["tokens_per_s"] for r in _records([pretraining], "train") if "tokens_per_s" in r]
    if not trained:
        raise UserError(f"{pretraining}: no steps with tokens_per_s; --measured takes the directory of a run")
    tuning = [path / METRICS for part in round_folders(run) for path in sorted(part.glob("tune-*"))]
    drawn = [r["tokens"] / r["seconds/rollout"] for r in _records(tuning, "tune")]
    # The median, since first steps (compilation, caches) and those beside other work are far off.
    return Rates(trained=median(trained), sampled=median(drawn) if drawn else None)


def _records(files: Iterable[Path], kind: str) -> list[dict[str, Any]]:
    there = [file for file in files if file.exists()]
    return [record for file in there for record in read_metrics(file) if record["kind"] == kind]
