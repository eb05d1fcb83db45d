"""Rank correlations with intervals, and what the benchmark's records say together.

Knows numbers and records; no model.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from benchmarks.influence_truth.settings import Settings
from benchmarks.influence_truth.texts import KINDS, NATURAL, pool_of_groups
from synpro_engine.config import UserError

Floats = NDArray[np.float64]
RESAMPLES = 1000


def spearman(one: ArrayLike, other: ArrayLike) -> float:
    """Rank correlation; 0 where one side is constant, which tells nothing of the other."""
    return _correlation(_ranks(_levels(one)), _ranks(_levels(other)))


def _levels(values: ArrayLike) -> NDArray[np.int64]:
    """Each value's place among the different ones."""
    return np.unique(np.asarray(values), return_inverse=True)[1]


def _ranks(levels: NDArray[np.int64]) -> Floats:
    """Ranks; equal values share the mean of theirs."""
    counts = np.bincount(levels)
    return (np.cumsum(counts) - 0.5 * (counts - 1.0))[levels]


def _correlation(one: Floats, other: Floats) -> float:
    a, b = one - one.mean(), other - other.mean()
    length = float(np.sqrt((a @ a) * (b @ b)))
    return float(a @ b) / length if length > 0.0 else 0.0


@dataclass(frozen=True, kw_only=True)
class Rho:
    """A rank correlation with its 95 % bootstrap interval (percentiles, resampling the pairs)."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def rho(one: ArrayLike, other: ArrayLike, *, seed: int = 0) -> Rho:
    """Spearman's rho with its interval."""
    a, b, rng = _levels(one), _levels(other), np.random.default_rng(seed)
    drawn = (rng.integers(len(a), size=len(a)) for _ in range(RESAMPLES))
    low, high = np.percentile([_correlation(_ranks(a[i]), _ranks(b[i])) for i in drawn], [2.5, 97.5])
    return Rho(value=spearman(one, other), low=float(low), high=float(high))


def rho_difference(one: ArrayLike, other: ArrayLike, truth: ArrayLike, *, seed: int = 0) -> Rho:
    """How much better `one` follows the truth than `other` does: the difference of their rhos, resampled together."""
    a, b, t, rng = _levels(one), _levels(other), _levels(truth), np.random.default_rng(seed)
    draws = []
    for i in (rng.integers(len(t), size=len(t)) for _ in range(RESAMPLES)):
        drawn = _ranks(t[i])
        draws.append(_correlation(_ranks(a[i]), drawn) - _correlation(_ranks(b[i]), drawn))
    low, high = np.percentile(draws, [2.5, 97.5])
    return Rho(value=spearman(one, truth) - spearman(other, truth), low=float(low), high=float(high))


@dataclass(frozen=True, kw_only=True)
class Results:
    """A run's records by kind."""

    settings: Settings
    environment: Mapping[str, Any]
    theta: Mapping[str, float]
    scores: Sequence[Mapping[str, Any]]
    candidates: Sequence[Mapping[str, Any]]
    subsets: Sequence[Mapping[str, Any]]
    sweep: Sequence[Mapping[str, Any]]

    @classmethod
    def read(cls, path: Path) -> Results:
        """Read JSON lines; UserError names a line that cannot be used, or the rows that are missing."""
        rows: dict[str, list[dict[str, Any]]] = {name: [] for name in ("run", "scores", "candidate", "subset", "sweep")}
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror})") from None
        for number, line in enumerate(lines, 1):
            try:
                record = json.loads(line)
                rows[record["row"]].append(record)
            except (ValueError, KeyError, TypeError):
                raise UserError(f"{path}:{number}: not a record of this benchmark") from None
        missing = [name for name, found in rows.items() if not found]
        if missing:
            raise UserError(f"{path}: no {', '.join(missing)} rows: the run is not complete")
        run = rows["run"][0]
        return cls(
            settings=Settings.model_validate_json(json.dumps(run["settings"])),
            environment=run["environment"],
            theta=run["theta"],
            scores=rows["scores"],
            candidates=sorted(rows["candidate"], key=lambda row: row["index"]),
            subsets=sorted(rows["subset"], key=lambda row: row["index"]),
            sweep=rows["sweep"],
        )

    def truth(self, key: str) -> Floats:
        """A drop of every candidate: `alone`, `alone_held_out` or `among_mates`."""
        return np.array([row[key] for row in self.candidates])

    def kinds(self) -> NDArray[np.str_]:
        """The kind of every candidate."""
        return np.array([row["kind"] for row in self.candidates])

    def drops(self, key: str = "drop") -> Floats:
        """The drop of every subset: `drop` or `drop_held_out`."""
        return np.array([row[key] for row in self.subsets])

    def within_kinds(self, of_subsets: Floats) -> Floats:
        """What is left of a number for each subset after a linear fit on how many groups of each kind are in it."""
        kinds, pool = self.kinds(), pool_of_groups(self.settings)
        of_group = [str(kinds[group[0]]) for group in pool]
        counts = np.array([[[of_group[g] for g in row["groups"]].count(k) for k in KINDS] for row in self.subsets])
        left = of_subsets - counts @ np.linalg.lstsq(counts.astype(float), of_subsets, rcond=None)[0]
        # Rounding has ranks too: what a fit explains altogether must leave nothing to correlate.
        return np.where(np.abs(left) < 1e-9 * np.abs(of_subsets).max(), 0.0, left)

    def predicted(self, values: Sequence[float]) -> Floats:
        """The sum of scores over the candidates of each subset."""
        pool, by_candidate = pool_of_groups(self.settings), np.asarray(values)
        of_group = np.array([by_candidate[list(group)].sum() for group in pool])
        return np.array([of_group[row["groups"]].sum() for row in self.subsets])


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """How one estimator did. None where it was not asked (oracles see some candidates only)."""

    estimator: str
    group: str
    alone: Rho
    held_out: float
    natural: float
    among_mates: Rho
    lds: Rho | None
    lds_within: Rho | None
    """The same of what kinds do not explain."""
    lds_held_out: float | None
    cost: float
    """CPU time of scoring over that of a forward pass on the same candidates."""
    made_in: float
    """CPU seconds to make the direction."""


def judge(results: Results) -> list[Verdict]:
    """Every estimator against every truth, in the order of the records."""
    forward = next(row["seconds"] for row in results.scores if row["estimator"] == "minus loss at theta")
    kinds = results.kinds()
    alone = results.truth("alone")
    extra = {
        "kind": "baseline",
        "values": [float(alone[kinds == kind].mean()) for kind in kinds],
        "estimator": "the measured mean of its kind",
    }
    rows = [*results.scores, {"group": "baseline", "every": 1, "seconds": 0.0, "made_in": 0.0, **extra}]
    return [_verdict(results, row, forward) for row in rows]


def _verdict(results: Results, row: Mapping[str, Any], forward: float) -> Verdict:
    every, values = row["every"], np.array(row["values"])
    natural = np.isin(results.kinds()[::every], NATURAL)
    alone, held_out, among_mates = (results.truth(key)[::every] for key in ("alone", "alone_held_out", "among_mates"))
    predicted = results.predicted(row["values"]) if every == 1 else None
    return Verdict(
        estimator=row["estimator"],
        group=row["group"],
        alone=rho(values, alone),
        held_out=spearman(values, held_out),
        natural=spearman(values[natural], alone[natural]),
        among_mates=rho(values, among_mates),
        lds=rho(predicted, results.drops()) if predicted is not None else None,
        lds_within=_within(results, predicted) if predicted is not None else None,
        lds_held_out=spearman(predicted, results.drops("drop_held_out")) if predicted is not None else None,
        cost=row["seconds"] / forward * (len(results.candidates) / len(values)),
        made_in=row["made_in"],
    )


def _within(results: Results, predicted: Floats) -> Rho:
    return rho(results.within_kinds(predicted), results.within_kinds(results.drops()))


def differences(results: Results, one: str, other: str) -> dict[str, Rho]:
    """By how much the estimator `one` is better than `other`, by truth."""
    values = {row["estimator"]: row["values"] for row in results.scores}
    a, b = results.predicted(values[one]), results.predicted(values[other])
    within, drops = results.within_kinds, results.drops()
    return {
        "alone": rho_difference(values[one], values[other], results.truth("alone")),
        "among mates": rho_difference(values[one], values[other], results.truth("among_mates")),
        "LDS": rho_difference(a, b, drops),
        "LDS within kinds": rho_difference(within(a), within(b), within(drops)),
    }
