"""Tables of why influence ranks actions as it does: what they are worth by horizon, and how scores agree with that."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.common.rank_correlation import spearman
from benchmarks.common.tables import markdown
from benchmarks.world.ranking import BASE, HORIZONS, NAMES

Record = Mapping[str, Any]
ByAction = dict[str, float]


def _gains(records: Sequence[Record]) -> dict[int, dict[int, ByAction]]:
    """By seed and horizon: what each action gains over repetition after so many steps, nats a value."""
    losses: dict[tuple[int, int, str], float] = {}
    for one in records:
        # Arms and actions of the study itself end at the last horizon.
        if one["bench"] == "world_action" or (one["bench"] == "world" and one["name"] == BASE):
            losses.setdefault((one["seed"], HORIZONS[-1], one["name"]), one["validation"])
        for step, found in one["losses"].items() if one["bench"] == "world_truth" else ():
            losses[one["seed"], int(step), one["name"]] = found["validation"]
    gains: dict[int, dict[int, ByAction]] = {}
    for (seed, step, name), loss in losses.items():
        base = losses.get((seed, step, BASE))
        if name in NAMES and step in HORIZONS and base is not None:
            gains.setdefault(seed, {}).setdefault(step, {})[name] = base - loss
    return gains


def _told(records: Sequence[Record]) -> dict[int, dict[str, ByAction]]:
    """By seed and way to score: each action's score."""
    told: dict[int, dict[str, ByAction]] = {}
    for one in (one for one in records if one["bench"] == "world_scores"):
        for how, value in one["scores"].items():
            told.setdefault(one["seed"], {}).setdefault(how, {})[one["name"]] = value
    for by in told.values():
        # Of ranks, for scores at other checkpoints are of other sizes.
        for side in ("earlier", "later"):
            several = [values for how, values in by.items() if how == "next step" or how.startswith(f"{side}: ")]
            if len(several) > 1:
                by[f"mean rank at theta and the {side}"] = _mean_ranks(several)
    return told


def _mean_ranks(several: Sequence[ByAction]) -> ByAction:
    names = [name for name in NAMES if all(name in values for values in several)]
    ranks_N = np.mean([np.argsort(np.argsort([values[name] for name in names])) for values in several], axis=0)
    return dict(zip(names, ranks_N.tolist(), strict=True))


def horizons(records: Sequence[Record]) -> str:
    """What each action is worth after so many steps, over the seeds that know it."""
    told = {one["seed"] for one in records if one["bench"] == "world_truth"}
    gains, rows = {seed: by for seed, by in _gains(records).items() if seed in told}, []
    for name in NAMES:
        cells = [[by[step][name] for by in gains.values() if name in by.get(step, {})] for step in HORIZONS]
        if any(cells):
            rows.append((name, *(f"{np.mean(cell):+.3f}" if cell else "" for cell in cells)))
    return markdown(("action", *map(_after, HORIZONS)), rows) if rows else ""


def _after(step: int) -> str:
    return f"after {step} step" + ("s" if step > 1 else "")


def scores(records: Sequence[Record]) -> str:
    """Rank correlations of scores, and of what actions are worth early, with what they are worth by horizon."""
    gains, told = _gains(records), _told(records)
    rows = []
    for step in HORIZONS[:-1]:
        early = {seed: by[step] for seed, by in gains.items() if step in by}
        cells = ("" if later <= step else _cell(early, gains, later) for later in HORIZONS)
        rows.append((f"*its worth {_after(step)}*", *cells))
    for how in dict.fromkeys(how for by in told.values() for how in by):
        scored = {seed: by[how] for seed, by in told.items() if how in by}
        rows.append((how, *(_cell(scored, gains, step) for step in HORIZONS)))
    if not any(cell for _, *cells in rows for cell in cells):
        return ""
    return markdown(("score", *(f"its worth {_after(step)}" for step in HORIZONS)), rows)


def _cell(scored: Mapping[int, ByAction], gains: Mapping[int, Mapping[int, ByAction]], step: int) -> str:
    """The mean over worlds of the rank correlation over actions, and its least and most."""
    found = []
    for seed, values in scored.items():
        worth = gains.get(seed, {}).get(step, {})
        both = [name for name in NAMES if name in worth and name in values]
        if len(both) > 2:
            found.append(spearman([values[name] for name in both], [worth[name] for name in both]))
    if not found:
        return ""
    within = f" ({min(found):.2f} to {max(found):.2f})" if len(found) > 1 else ""
    return f"{np.mean(found):.2f}{within}"
