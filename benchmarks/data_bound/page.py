"""What docs/data-bound.md shows of the records: what there is and what is missing, tables, and a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.common.multiples import Mean, interval, mean, on_record
from benchmarks.common.tables import markdown
from benchmarks.common.worth import Trained, curve_of, trained, worth
from benchmarks.data_bound.arms import ARMS, CURVES, LARGER, MEMBERS, SWEEPS
from benchmarks.data_bound.cost import arm_flops, sweep_flops, training_flops
from benchmarks.data_bound.losses import best, best_trial, end
from synpro_engine.report.svg import SERIES

Record = Mapping[str, Any]
BASE = "untuned"
_ENSEMBLE = "ensembles"
_RISE = 0.01
"""Nats a token, below which a loss is said to stay."""


def blocks(records: Sequence[Record]) -> dict[str, str]:
    """By the name of its mark in the page: each table."""
    done = {(one["arm"], one["seed"]) for one in records if one["bench"] == "data_bound"}
    state = on_record(done, [(name, seed) for name, arm in ARMS.items() for seed in arm.seeds])
    return {
        "state": "\n".join(state),
        "arms": _arms(records),
        "verdict": _verdict(records),
        "worth": worth(_trained(records), CURVES),
        "curve": _curve(records),
        "sweeps": _sweeps(records),
    }


def _of(records: Sequence[Record], arm: str) -> list[Record]:
    return [record for record in records if record.get("arm") == arm]


def _trained(records: Sequence[Record]) -> dict[str, Trained]:
    """By arm: its losses at best, and those of the ensembles, at their end."""
    found = {name: trained(mine, best) for name in ARMS if (mine := _of(records, name))}
    told = tuple(record["loss"] for record in records if record["bench"] == "data_bound_ensemble")
    return found | ({_ENSEMBLE: replace(found["all"], losses=told)} if told and "all" in found else {})


def _arms(records: Sequence[Record]) -> str:
    found, rows = _trained(records), list[tuple[str, ...]]()
    base = _of(records, BASE)
    flops = {name: training_flops(_of(records, name)[0]) for name in found if name != _ENSEMBLE}
    for name in (name for name in found if name not in LARGER and base):
        lowest, unit = mean(found[name].losses), flops[BASE]
        if name == _ENSEMBLE:
            about, seeds, cost = (
                f"{len(MEMBERS)} of `all`",
                f"{len(found[name].losses)} choices",
                len(MEMBERS) * flops["all"],
            )
            last = lowest
        else:
            mine = _of(records, name)
            about, seeds, last = ARMS[name].about, str(len(mine)), mean([end(one) for one in mine])
            cost = arm_flops(name, mine[0], flops.get("all", 0.0))
        rows.append((name, about, seeds, *_shown(lowest), f"{last.value:.3f}", f"{cost / unit:.2f}"))
    headings = ("arm", "what it changes", "seeds", "loss at best", "95 %", "at the end", "training FLOPs")
    return markdown(headings, rows)


def _shown(found: Mean) -> tuple[str, str]:
    return f"{found.value:.3f}", interval(found)


def _verdict(records: Sequence[Record]) -> str:
    """Which arms do not help, which are not told from chance, and whose loss rises behind its best."""
    found = _trained(records)
    if BASE not in found:
        return ""
    base, above, unclear, rising = mean(found[BASE].losses), list[str](), list[str](), list[str]()
    for name in (name for name in ARMS if name in found and name not in (BASE, *LARGER)):
        lowest, last = mean(found[name].losses), mean([end(one) for one in _of(records, name)])
        told = f"`{name}` ({lowest.value - base.value:+.3f})"
        if lowest.value >= base.value:
            above.append(told)
        elif base.low is None or lowest.high is None or lowest.high >= base.low:
            unclear.append(told)
        if last.value - lowest.value > _RISE:
            rising.append(f"`{name}` (from {lowest.value:.3f} to {last.value:.3f})")
    kinds = (
        ("No help, with a mean loss at best that is no lower than that of untuned repetition", above),
        ("Lower than untuned repetition, and no more than chance may be: intervals meet, or are of one seed", unclear),
        ("Rising between best and end, so that the multiple is that of a training stopped in time", rising),
    )
    return "\n\n".join(f"{told}: {', '.join(names)}." for told, names in kinds if names)


def _curve(records: Sequence[Record]) -> str:
    rows = []
    for of, name in ((of, name) for of, names in CURVES.items() for name in names):
        mine = _of(records, name)
        if mine:
            lowest = mean([best(one) for one in mine])
            tokens, epochs = mine[0]["unique_tokens"], mine[0]["tokens"] / mine[0]["unique_tokens"]
            at = min(mine[0]["curve"], key=lambda line: line["reference"])["step"] / mine[0]["curve"][-1]["step"]
            told = (f"{tokens:,}", f"{epochs:.1f}", f"{at * epochs:.1f}", str(len(mine)), f"{lowest.value:.3f}")
            rows.append((of, *told))
    return markdown(("curve", "unique tokens", "epochs", "best at epoch", "seeds", "loss at best"), rows)


def _sweeps(records: Sequence[Record]) -> str:
    rows, unit = [], next((training_flops(one) for one in _of(records, BASE)), None)
    for record in (record for record in records if record["bench"] == "data_bound_sweep"):
        trials = record["trials"]
        chosen_trial = best_trial(record)
        chosen = ", ".join(
            f"`{key.removeprefix('pretrain.')}` {_short(value)}" for key, value in chosen_trial["settings"].items()
        )
        states = [one["state"] for one in trials]
        ended = len(states) - states.count("complete")
        cost = f"{sweep_flops(record) / unit:.1f}" if unit else ""
        rows.append((record["sweep"], str(len(trials)), str(ended), chosen, f"{chosen_trial['loss']:.3f}", cost))
    assert all(row[0] in SWEEPS for row in rows)
    return markdown(("sweep", "trials", "ended early", "best", "its reference loss", "training FLOPs"), rows)


def _short(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def draw(records: Sequence[Record], path: Path) -> None:
    """Write a PNG: held-out loss along training by arm, and the curve of unique tokens with the arms' losses on it."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    found, told = _trained(records), False
    for (of, names), dashes in zip(CURVES.items(), ("-", "--"), strict=True):
        curve = curve_of(found, names)
        if curve is not None:
            right.plot(curve.tokens, curve.means, color="black", marker="o", linestyle=dashes, label=of)
            told = True
    for name, colour in zip((name for name in ARMS if name not in LARGER), SERIES, strict=False):
        mine = _of(records, name)
        for number, record in enumerate(mine):
            share = [line["step"] / record["curve"][-1]["step"] for line in record["curve"][1:]]
            losses = [line["validation"] for line in record["curve"][1:]]
            left.plot(share, losses, color=colour, alpha=0.7, linewidth=1.2, label=None if number else name)
        if mine and name != BASE:
            right.axhline(mean([best(one) for one in mine]).value, color=colour, linewidth=1, label=name)
    left.set(title="loss on the validation split", xlabel="part of training", ylabel="nats a token")
    right.set(title="what it is worth in unique tokens", xlabel="unique tokens", xscale="log")
    if not told:  # curves of one size so far
        figure.delaxes(right)
    for axes in figure.axes:
        axes.legend(fontsize=8)
        axes.grid(visible=True, alpha=0.3)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
