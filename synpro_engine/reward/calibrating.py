"""Fitting the map that calibrates a judge to pairs of which the truth is known, and what it gains on other sources.

Shape suffixes: N pairs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from synpro_engine.config import UserError
from synpro_engine.reward.judges import Calibration, log_odds
from synpro_engine.reward.measures import Array, auc, balanced, calibration_error

_FOLDS = 5
_LEAST = 10  # true ones and false ones
_STEPS, _HALVINGS = 100, 30


class Labelled(NamedTuple):
    """What a judge said of the pairs of one set."""

    places_N: Array
    """Values as places on the question's scale, in [0, 1]."""
    labels_N: Array
    """1 for a true pair, else 0."""
    sources: Sequence[str]
    """[N]: pairs of one source are never on both sides of a fit."""

    def only(self, chosen_N: NDArray[np.bool_]) -> Labelled:
        """The chosen ones."""
        sources = [source for source, chosen in zip(self.sources, chosen_N, strict=True) if chosen]
        return Labelled(self.places_N[chosen_N], self.labels_N[chosen_N], sources)


def least_cross_entropy(odds_N: Array, labels_N: Array, weights_N: Array) -> tuple[float, float]:
    """(slope, offset) of least weighted cross-entropy of sigmoid(slope * odds + offset), by damped Newton steps."""
    rows: Array = np.stack([odds_N, np.ones_like(odds_N)])
    at: Array = np.array([1.0, 0.0])

    def loss(of: Array) -> float:
        z_N = of @ rows
        return float(weights_N @ (np.logaddexp(0.0, z_N) - labels_N * z_N))

    before = loss(at)
    for _ in range(_STEPS):
        p_N = 0.5 + 0.5 * np.tanh(at @ rows / 2)
        # The summands keep a step finite where all is sure already.
        curve = (rows * (weights_N * p_N * (1 - p_N) + 1e-9)) @ rows.T + 1e-6 * np.eye(2)
        step = np.linalg.solve(curve, rows @ (weights_N * (p_N - labels_N))).astype(np.float64)
        # Far from the least a whole step may overshoot (Lin, Lin and Weng 2007).
        tries = (at - step * 0.5**halved for halved in range(_HALVINGS))
        nearer = next((tried for tried in tries if loss(tried) < before), None)
        if nearer is None:
            break
        at, before = nearer, loss(nearer)
    return float(at[0]), float(at[1])


def fit_calibration(
    sets: Mapping[str, Labelled], *, judge: str, model: str, api: str, question: str, option: str
) -> Calibration:
    """The map of least cross-entropy, in each set with true and false pairs at par; measured on other sources.

    Labels are drawn in a little (Platt 1999), so that a judge without a fault among few pairs is not made endlessly
    sure. UserError, naming `option`, for too few answers, and for a judge that no rising map can calibrate.
    """
    sets = {name: of for name, of in sets.items() if {0.0, 1.0} <= set(of.labels_N.tolist())}
    counts = [sum(int((of.labels_N == label).sum()) for of in sets.values()) for label in (1.0, 0.0)]
    if min(counts, default=0) < _LEAST:
        raise UserError(
            f"{option}: the judge `{judge}` answered {counts[0]} true and {counts[1]} false pairs of sets that have"
            f" both, and a fit needs {_LEAST} of each; raise --texts or --pairs"
        )
    slope, offset = _fit(list(sets.values()))
    if slope <= 0.0:
        raise UserError(
            f"{option}: the judge `{judge}` rates false pairs no lower than true ones, which no rising map mends"
        )
    after = _of_other_sources(sets)
    return Calibration(
        judge=judge, model=model, api=api, question=question,
        temperature=float(f"{1.0 / slope:.6g}"), offset=float(f"{offset:.6g}"),
        pairs={name: len(of.labels_N) for name, of in sets.items()},
        measured={
            name: {
                "before": round(_error(of.places_N, of), 6), "after": round(_error(after[name], of), 6),
                "auc": round(auc(of.places_N[of.labels_N == 1], of.places_N[of.labels_N == 0]), 6),
            }
            for name, of in sets.items()
        },
    )  # fmt: skip


def _error(places_N: Array, of: Labelled) -> float:
    return calibration_error(places_N, of.labels_N, np.ones(len(of.labels_N)))


def _fit(sets: Sequence[Labelled]) -> tuple[float, float]:
    odds_N = np.array([log_odds(place) for of in sets for place in of.places_N])
    targets_N = np.concatenate([_drawn_in(of.labels_N) for of in sets])
    # By how many they are, so that a handful of pairs of one set does not rule a thousand of another.
    weights_N = np.concatenate([balanced(of.labels_N, np.ones(len(of.labels_N))) * len(of.labels_N) for of in sets])
    return least_cross_entropy(odds_N, targets_N, weights_N / len(odds_N))


def _drawn_in(labels_N: Array) -> Array:
    true = labels_N.sum()
    return np.where(labels_N == 1, (true + 1) / (true + 2), 1 / (len(labels_N) - true + 2))


def _of_other_sources(sets: Mapping[str, Labelled]) -> dict[str, Array]:
    """Places of each set's pairs as maps give them that were fitted without the pairs' own sources."""
    fold_of = {source: at for at, source in enumerate(dict.fromkeys(s for of in sets.values() for s in of.sources))}
    folds = {name: np.array([fold_of[source] % _FOLDS for source in of.sources]) for name, of in sets.items()}
    found = {name: of.places_N.copy() for name, of in sets.items()}
    for fold in range(_FOLDS):
        rest = [of.only(folds[name] != fold) for name, of in sets.items()]
        rest = [of for of in rest if {0.0, 1.0} <= set(of.labels_N.tolist())]
        if not rest:
            continue
        slope, offset = _fit(rest)
        for name, of in sets.items():
            odds = [slope * log_odds(place) + offset for place in of.places_N[folds[name] == fold]]
            found[name][folds[name] == fold] = 0.5 + 0.5 * np.tanh(np.array(odds) / 2)
    return found
