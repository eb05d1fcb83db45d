"""What docs/evidence.md shows of the world's records: tables and a picture."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common.multiples import interval, mean
from benchmarks.common.rank_correlation import spearman
from benchmarks.common.tables import markdown
from benchmarks.common.worth import Trained, multiples
from benchmarks.world.cost import costs
from benchmarks.world.ranking_page import horizons, scores
from benchmarks.world.rephraser import ACTIONS
from benchmarks.world.spread import told
from benchmarks.world.study import COPIES, LEFT_OUT
from benchmarks.world.trainings import ALL_TOKENS
from benchmarks.world.world import World
from synpro_engine.evaluate.effective_tokens import UniqueCurve
from synpro_engine.evaluate.repetition import NAMES

Record = Mapping[str, Any]
_BASE = "repetition"
_READ = float(ALL_TOKENS)


def blocks(records: Sequence[Record]) -> dict[str, str]:
    """By the name of its mark in the page: each table."""
    if not any(one["bench"] == "world" for one in records):
        return {"world-grid": _grid(records)}
    return {
        "world-arms": _arms(records),
        "world-pairs": _pairs(records),
        "world-curve": _curve(records),
        "world-cost": costs(records),
        "world-actions": _actions(records),
        "world-horizons": horizons(records),
        "world-scores": scores(records),
        "world-spread": told(records),
        "world-grid": _grid(records),
    }


def _losses(records: Sequence[Record], name: str) -> dict[int, float]:
    """Loss on the validation people, by seed, in the order of seeds."""
    found = {one["seed"]: one["validation"] for one in records if one["bench"] == "world" and one["name"] == name}
    return dict(sorted(found.items()))


def _sizes(records: Sequence[Record]) -> dict[int, dict[int, float]]:
    """By the copies of the organic text that were drawn: losses of training on them, by seed."""
    named = {1: _BASE} | {copies: f"unique-{copies}" for copies in COPIES}
    return {copies: losses for copies, name in named.items() if (losses := _losses(records, name))}


@cache
def _tokens(seed: int, copies: int) -> tuple[int, int]:
    """Of so many copies in one world: all tokens, and the distinct ones."""
    world = World(seed)
    return sum(len(text.words) for text in world.organic(copies)), world.distinct_tokens(copies)


def _mean_tokens(copies: int, seeds: Collection[int]) -> tuple[float, float]:
    drawn, distinct = zip(*(_tokens(seed, copies) for seed in seeds), strict=True)
    return float(np.mean(drawn)), float(np.mean(distinct))


def unique_curve(records: Sequence[Record]) -> UniqueCurve | None:
    """Distinct tokens, in the mean of the worlds, and losses of training on them, by seed; None of one size."""
    sizes = _sizes(records)
    if len(sizes) < 2:
        return None
    return UniqueCurve(
        tokens=tuple(_mean_tokens(copies, losses)[1] for copies, losses in sizes.items()),
        losses=tuple(tuple(losses.values()) for losses in sizes.values()),
        totals=(_READ,) * len(sizes),
    )


def _arms(records: Sequence[Record]) -> str:
    curve, base, rows = unique_curve(records), _losses(records, _BASE), list[tuple[str, ...]]()
    for name in dict.fromkeys(one["name"] for one in records if one["bench"] == "world"):
        losses = _losses(records, name)
        both = sorted(losses.keys() & base.keys())
        if name in LEFT_OUT or not both:
            continue
        found, paired = mean(list(losses.values())), mean([losses[seed] - base[seed] for seed in both])
        than = "" if name == _BASE else f"{paired.value:+.3f} ({interval(paired)})"
        shared = all(losses.keys() == others.keys() for others in _sizes(records).values())
        arm = Trained(unique=_mean_tokens(1, losses)[1], total=_READ, losses=tuple(losses.values()))
        worth = multiples(arm, curve, paired=shared)
        rows.append((name, str(len(losses)), f"{found.value:.3f}", interval(found), than, *worth))
    return markdown(
        ("arm", "seeds", "loss", "95 %", f"against {_BASE}, by seed", *(f"multiple, {name}" for name in NAMES)), rows
    )


def _pairs(records: Sequence[Record]) -> str:
    """What the arm tuned with influence is below each of those that differ from it in how influence is used."""
    ours, rows = _losses(records, "tuned, influence"), []
    for name in ("tuned, no influence", "tuned, influence shuffled", "best of four by influence", "prompted"):
        theirs = _losses(records, name)
        both = sorted(ours.keys() & theirs.keys())
        if not both:
            continue
        found = mean([theirs[seed] - ours[seed] for seed in both])
        rows.append((name, f"{found.value:.3f}", interval(found)))
    return markdown(("tuned with influence lies below", "by, seed by seed", "95 %"), rows)


def _curve(records: Sequence[Record]) -> str:
    rows, least = list[tuple[str, ...]](), 0.0
    for copies, losses in _sizes(records).items():
        found, (drawn, distinct) = mean(list(losses.values())), _mean_tokens(copies, losses)
        least = least or distinct
        tokens = (f"{drawn:,.0f}", f"{distinct:,.0f}", f"{distinct / least:.2f}")
        rows.append((str(copies), *tokens, f"{found.value:.3f}", interval(found)))
    headings = ("times drawn", "tokens", "distinct tokens", "times the distinct text", "loss", "95 %")
    return markdown(headings, rows) if len(rows) > 1 else ""


def _grid(records: Sequence[Record]) -> str:
    rows = [
        (f"{decay:g}", f"{part:g}", f"{one['reference']:.3f}", f"{one['validation']:.3f}")
        for one in records
        if one["bench"] == "world_grid"
        for decay, part in [(one["settings"]["optimizer"]["weight_decay"], one["settings"]["dropout"]["residual"])]
    ]
    return markdown(("weight decay", "dropout", "reference loss", "validation loss"), rows)


def _actions(records: Sequence[Record]) -> str:
    base, rows, worth, said = _losses(records, _BASE), [], [], []
    tuned = {arm: _probabilities(records, arm) for arm in ("tuned, no influence", "tuned, influence")}
    tuned["shuffled"] = _probabilities(records, "tuned, influence shuffled")
    for number, (form, care) in enumerate(ACTIONS):
        mine = [one for one in records if one["bench"] == "world_action" and one["name"] == f"{form}, {care}"]
        mine = [one for one in mine if one["seed"] in base]
        if not mine:
            continue
        gain = mean([base[one["seed"]] - one["validation"] for one in mine])
        influence = float(np.mean([one["influence"] for one in mine]))
        worth.append(gain.value)
        said.append(influence)
        shares = (f"{100 * found[number]:.0f} %" if found is not None else "" for found in tuned.values())
        rows.append((f"{form}, {care}", f"{gain.value:+.3f}", interval(gain), f"{1000 * influence:+.2f}", *shares))
    if not rows:
        return ""
    table = markdown(
        (
            "action",
            "what training on it alone gains",
            "95 %",
            "its influence, x 1000",
            *(f"share: {arm}" for arm in tuned),
        ),
        rows,
    )
    return f"{table}\n\nRank correlation of influence with what is gained: {spearman(worth, said):.2f}."


def _probabilities(records: Sequence[Record], name: str) -> np.ndarray | None:
    found = [one["probabilities"] for one in records if one["bench"] == "world" and one["name"] == name]
    return np.mean(found, axis=0) if found else None


def draw(records: Sequence[Record], path: Path) -> None:
    """Write a PNG: the arms' losses by seed, and what actions are worth against what influence says of them."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    names = list(dict.fromkeys(one["name"] for one in records if one["bench"] == "world"))
    for place, name in enumerate(reversed(names)):
        losses = list(_losses(records, name).values())
        left.scatter(losses, [place] * len(losses), s=12, color="tab:gray", alpha=0.6)
        left.scatter([np.mean(losses)], [place], s=40, color="tab:blue")
    left.set_yticks(range(len(names)), list(reversed(names)))
    left.set(title="loss by arm: seeds, and their mean", xlabel="nats a value, people asked about nowhere")
    base = _losses(records, _BASE)
    for form, care in ACTIONS:
        mine = [one for one in records if one["bench"] == "world_action" and one["name"] == f"{form}, {care}"]
        mine = [one for one in mine if one["seed"] in base]
        if mine:
            x = 1000 * np.mean([one["influence"] for one in mine])
            y = np.mean([base[one["seed"]] - one["validation"] for one in mine])
            right.scatter([x], [y], color="tab:blue" if care == "careful" else "tab:red", s=20)
            right.annotate(form, (x, y), fontsize=7, xytext=(3, 3), textcoords="offset points")
    right.set(title="what an action is worth (red: careless)", xlabel="mean influence, x 1000", ylabel="nats gained")
    right.set_xscale("symlog", linthresh=0.1)
    for axes in (left, right):
        axes.grid(visible=True, alpha=0.3)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
