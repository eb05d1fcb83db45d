"""What docs/data-bound.md shows of the records: what there is and what is missing, tables, and a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.common.multiples import interval, mean, multiples, on_record
from benchmarks.common.tables import markdown
from benchmarks.data_bound.arms import ARMS, CURVE, MEMBERS, SWEEPS
from benchmarks.data_bound.losses import best, best_trial, end, unique_curve
from synpro_engine.evaluate.effective_tokens import READINGS
from synpro_engine.report.svg import SERIES

Record = Mapping[str, Any]
_ENSEMBLE = f"ensemble of {len(MEMBERS)} of these, at their end"


def blocks(records: Sequence[Record]) -> dict[str, str]:
    """By the name of its mark in the page: each table."""
    done = {(one["arm"], one["seed"]) for one in records if one["bench"] == "data_bound"}
    state = on_record(done, [(name, seed) for name, arm in ARMS.items() for seed in arm.seeds])
    return {"state": "\n".join(state), "arms": _arms(records), "curve": _curve(records), "sweeps": _sweeps(records)}


def _of(records: Sequence[Record], arm: str) -> list[Record]:
    return [record for record in records if record.get("arm") == arm]


def _arms(records: Sequence[Record]) -> str:
    curve, rows = unique_curve(records), list[tuple[str, ...]]()
    unit = next((record["flops"] for record in _of(records, CURVE[0])), None)
    for name in (name for name in ARMS if name not in CURVE[1:]):
        mine = _of(records, name)
        if not mine or unit is None:
            continue
        lowest, last = mean([best(one) for one in mine]), mean([end(one) for one in mine])
        cost = mine[0]["flops"] / unit
        # A student costs its teachers too.
        cost += len(MEMBERS) if ARMS[name].teachers is not None else 0
        rows.append(
            (name, ARMS[name].about, str(len(mine)), f"{lowest.value:.3f}", interval(lowest), f"{last.value:.3f}",
             *multiples([best(one) for one in mine], curve), f"{cost:.1f}")
        )  # fmt: skip
        told = [record["loss"] for record in records if record["bench"] == "data_bound_ensemble"]
        if name == "all" and told:
            together, cells = mean(told), multiples(told, curve)
            loss = f"{together.value:.3f}"
            rows.append(
                ("", _ENSEMBLE, f"{len(told)} choices", loss, interval(together), loss, *cells,
                 f"{cost * len(MEMBERS):.1f}")
            )  # fmt: skip
    headings = (
        "arm", "what it changes", "seeds", "loss at best", "95 %", "at the end",
        *(f"multiple, {name}" for name in READINGS), "training FLOPs",
    )  # fmt: skip
    return markdown(headings, rows)


def _curve(records: Sequence[Record]) -> str:
    rows = []
    for name in CURVE:
        mine = _of(records, name)
        if mine:
            lowest = mean([best(one) for one in mine])
            tokens, epochs = mine[0]["unique_tokens"], mine[0]["tokens"] / mine[0]["unique_tokens"]
            at = min(mine[0]["curve"], key=lambda line: line["reference"])["step"] / mine[0]["curve"][-1]["step"]
            rows.append((f"{tokens:,}", f"{epochs:.1f}", f"{at * epochs:.1f}", str(len(mine)), f"{lowest.value:.3f}"))
    return markdown(("unique tokens", "epochs", "best at epoch", "seeds", "loss at best"), rows)


def _sweeps(records: Sequence[Record]) -> str:
    rows = []
    for record in (record for record in records if record["bench"] == "data_bound_sweep"):
        trials = record["trials"]
        chosen_trial = best_trial(record)
        chosen = ", ".join(
            f"`{key.removeprefix('pretrain.')}` {_short(value)}" for key, value in chosen_trial["settings"].items()
        )
        states = [one["state"] for one in trials]
        ended = len(states) - states.count("complete")
        rows.append((record["sweep"], str(len(trials)), str(ended), chosen, f"{chosen_trial['loss']:.3f}"))
    assert all(row[0] in SWEEPS for row in rows)
    return markdown(("sweep", "trials", "ended early", "best", "its reference loss"), rows)


def _short(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def draw(records: Sequence[Record], path: Path) -> None:
    """Write a PNG: held-out loss along training by arm, and the curve of unique tokens with the arms' losses on it."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    curve = unique_curve(records)
    if curve is not None:
        right.plot(curve.tokens, curve.means, color="black", marker="o", label="untuned repetition")
    for name, colour in zip((name for name in ARMS if name not in CURVE[1:]), SERIES, strict=False):
        mine = _of(records, name)
        for number, record in enumerate(mine):
            share = [line["step"] / record["curve"][-1]["step"] for line in record["curve"][1:]]
            losses = [line["validation"] for line in record["curve"][1:]]
            left.plot(share, losses, color=colour, alpha=0.7, linewidth=1.2, label=None if number else name)
        if mine and name != CURVE[0]:
            right.axhline(mean([best(one) for one in mine]).value, color=colour, linewidth=1, label=name)
    left.set(title="loss on the validation split", xlabel="part of training", ylabel="nats a token")
    right.set(title="what it is worth in unique tokens", xlabel="unique tokens", xscale="log")
    if curve is None:  # of one size so far
        figure.delaxes(right)
    for axes in figure.axes:
        axes.legend(fontsize=8)
        axes.grid(visible=True, alpha=0.3)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
