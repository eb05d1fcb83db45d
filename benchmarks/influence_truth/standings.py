"""How the estimators did against the measured truths, and against each other. Knows records and statistics."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.common.rank_correlation import Rho, rho, rho_difference, spearman
from benchmarks.influence_truth.results import Results
from benchmarks.influence_truth.texts import NATURAL


@dataclass(frozen=True, kw_only=True)
class Standing:
    """How one estimator did. None where it was not asked (oracles see some candidates only)."""

    estimator: str
    group: str
    alone: Rho
    held_out: float
    natural: float
    among_mates: Rho
    cost: float
    """CPU time of scoring over that of a forward pass on the same candidates."""
    made_in: float
    """CPU seconds to make the direction."""
    lds: Rho | None = None
    lds_within: Rho | None = None
    """The same of what kinds do not explain."""
    lds_held_out: float | None = None


def standings(results: Results) -> list[Standing]:
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
    return [_standing(results, row, forward) for row in rows]


def _standing(results: Results, row: Mapping[str, Any], forward: float) -> Standing:
    every, values = row["every"], np.array(row["values"])
    natural = np.isin(results.kinds()[::every], NATURAL)
    alone, held_out, among_mates = (results.truth(key)[::every] for key in ("alone", "alone_held_out", "among_mates"))
    drops, within, lds = results.drops(), results.within_kinds, {}
    if every == 1:
        predicted = results.predicted(row["values"])
        lds = {
            "lds": rho(predicted, drops),
            "lds_within": rho(within(predicted), within(drops)),
            "lds_held_out": spearman(predicted, results.drops("drop_held_out")),
        }
    return Standing(
        estimator=row["estimator"],
        group=row["group"],
        alone=rho(values, alone),
        held_out=spearman(values, held_out),
        natural=spearman(values[natural], alone[natural]),
        among_mates=rho(values, among_mates),
        cost=row["seconds"] / forward * (len(results.candidates) / len(values)),
        made_in=row["made_in"],
        **lds,
    )


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
