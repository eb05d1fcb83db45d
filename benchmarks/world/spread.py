"""How far a completion's influence hangs on which questions are the reference, beside what a group's differ by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.common.tables import markdown
from benchmarks.world.rephraser import Rephraser
from benchmarks.world.trainings import Trainings
from synpro_engine.influence import EstimatorConfig

Record = Mapping[str, Any]
GROUPS, PARTS = 24, 4


def spread(trainings: Trainings) -> dict[str, Any]:
    """At theta of one world: groups of a prompted rephraser, scored towards disjoint parts of the reference."""
    world, rng, prompted = trainings.world, trainings.world.draws("spread"), Rephraser.prompted()
    trainings.make_theta()
    people = [list(world.reference)[part::PARTS] for part in range(PARTS)]
    names = [f"part {part}" for part in range(PARTS)]
    others = {name: world.asked(some) for name, some in zip(names, people, strict=True)}
    estimator = trainings.influence(EstimatorConfig(), others=others)
    sources = [world.organic()[int(rng.integers(len(world.told) * 2))] for _ in range(GROUPS)]
    texts = [prompted.rephrase(world, source, rng)[0] for source in sources for _ in range(Rephraser.group)]
    scores = estimator.score([text.words[:-1] for text in texts])
    parts_GCP = np.array([[one.others[name] for name in names] for one in scores]).reshape(GROUPS, -1, PARTS)
    return {"parts": PARTS, "groups": GROUPS, "completions": Rephraser.group, **components(parts_GCP)}


def components(score_GCP: NDArray[np.floating[Any]]) -> dict[str, float]:
    """Of scores [groups, completions, parts of the reference]: variances within groups, as advantages compare them.

    noise: of one completion, over parts, beyond what a part does to all of its group. between: of completions of a
    group, without noise, by expected mean squares of two crossed factors (Searle et al. 1992, chapter 4).
    """
    groups, completions, parts = score_GCP.shape
    apart = score_GCP - score_GCP.mean(1, keepdims=True)
    mean_GC1 = apart.mean(2, keepdims=True)
    noise = float(np.square(apart - mean_GC1).sum() / (groups * (completions - 1) * (parts - 1)))
    square = float(parts * np.square(mean_GC1).sum() / (groups * (completions - 1)))
    return {"noise": noise, "between": max(0.0, (square - noise) / parts)}


def told(records: Sequence[Record]) -> str:
    """A table of what is on record, by world."""
    rows = []
    for one in (one for one in records if one["bench"] == "world_spread"):
        whole = one["noise"] / one["parts"]
        ratio = one["between"] / (one["between"] + whole)
        cells = (f"{1000 * one[key] ** 0.5:.2f}" for key in ("between", "noise"))
        rows.append((str(one["seed"]), *cells, f"{1000 * whole**0.5:.2f}", f"{ratio:.2f}"))
    headings = (
        "world", "between completions", "of one, over quarters of the reference", "and over whole ones", "reliability"
    )  # fmt: skip
    return markdown(headings, rows) if rows else "*Not run yet.*"
