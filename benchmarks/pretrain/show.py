"""Records of training steps as tables, and as a picture."""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.common.environment import QUIET
from benchmarks.common.tables import aligned

Record = Mapping[str, Any]
_HEADINGS = ("contender", "tokens/s", "ms a step", "quartiles", "times plain", "of the turns", "MFU", "HFU", "peak MB")


def table(records: Sequence[Record]) -> str:
    """By case: who competes, where our step's time goes, and what memory is held by."""
    lines: list[str] = []
    for case in dict.fromkeys(map(label, records)):
        of_case = [record for record in records if label(record) == case]
        for ranks, layout in dict.fromkeys((record["ranks"], record["layout"]) for record in of_case):
            here = [r for r in of_case if (r["ranks"], r["layout"]) == (ranks, layout)]
            where = "" if ranks == 1 else f", on {ranks} processes ({layout})"
            lines += [f"{case}{where}", *aligned([_HEADINGS, *map(_cells, here)], right=range(1, 9))]
            lines += [line for record in here for line in (*_breakdown(record), *_memory(record))]
            lines.append("")
    foreign = max((float(record["foreign_cpu_share"]) for record in records), default=0.0)
    if foreign > QUIET:
        lines.append(f"others took {foreign:.0%} of the machine meanwhile: these times are not to be quoted")
    peaks = {record["peak"] for record in records}
    return "\n".join([*lines, f"MFU and HFU are shares of the {' or '.join(sorted(peaks))}'s rate"])


def label(record: Record) -> str:
    """What was trained: the case's title, which tells the shape, and all settings that are others than the recipe's."""
    return ", ".join([record["case"], *record["overrides"]])


def _cells(record: Record) -> tuple[str, ...]:
    timing, ratios = record.get("timing"), record.get("ratios") or []
    peak = f"{record['memory']['peak_bytes'] / 1e6:.0f}" if record.get("memory") else "-"
    if timing is None:
        return (f"{record['contender']} ({record['status']}: {record['reason']})", *["-"] * 7, peak)
    wrong = "" if record["status"] == "ok" else f" (WRONG: {record['reason']})"
    return (
        record["contender"] + wrong,
        f"{record['tokens_per_s']:,.0f}",
        f"{timing['median'] * 1e3:.1f}",
        f"{timing['low'] * 1e3:.1f}-{timing['high'] * 1e3:.1f}",
        f"{statistics.median(ratios):.2f}" if ratios else "-",
        f"{min(ratios):.2f}-{max(ratios):.2f}" if ratios else "-",
        f"{record['mfu']:.1%}",
        f"{record['hfu']:.1%}" if record.get("hfu") else "-",
        peak,
    )


def _breakdown(record: Record) -> Iterator[str]:
    seconds = record.get("breakdown")
    if seconds:
        total = sum(seconds.values())
        parts = sorted(seconds.items(), key=lambda item: -item[1])
        yield "  a step: " + ", ".join(f"{name} {taken / total:.1%}" for name, taken in parts)
    if (saving := record.get("checkpoint_seconds")) is not None:
        yield f"  a checkpoint: {saving:.2f} s"
    if "breakdown_reason" in record:
        yield f"  a step's parts not measured: {record['breakdown_reason']}"
    if record.get("bubble"):
        measured, formula = record["bubble"]["measured"], record["bubble"]["formula"]
        yield f"  of their steps, stages of the pipeline wait {measured:.1%}; by the formula {formula:.1%}"


def _memory(record: Record) -> Iterator[str]:
    held = record.get("memory")
    if held:
        parts = ", ".join(f"{name} {held[name] / 1e6:.0f}" for name in ("weights", "gradients", "optimizer", "rest"))
        yield f"  {record['contender']}, MB: {parts}"
    elif "memory_reason" in record:
        yield f"  {record['contender']}, memory not measured: {record['memory_reason']}"


# ---- a picture -------------------------------------------------------------------------------------------------------


def draw(records: Sequence[Record], path: Path) -> None:
    """Write the picture: speeds and parts of a step by case, or along a sweep of one number its cost."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 4.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    ok = [record for record in records if record["status"] == "ok"]
    swept = _swept(ok)
    if swept is None:
        _bars(left, ok)
    else:
        _lines(left, ok, swept)
    _parts(right, ok, swept)
    figure.savefig(path, dpi=120)


def _swept(records: Sequence[Record]) -> str | None:
    """The one setting that differs from case to case, where its values are numbers."""
    values: dict[str, set[str]] = {}
    for record in records:
        for override in record["overrides"]:
            key, _, value = override.partition("=")
            values.setdefault(key, set()).add(value)
    varied = [key for key, of in values.items() if len(of) > 1]
    numbers = all(re.fullmatch(r"\d+", value) for key in varied for value in values[key])
    return varied[0] if len(varied) == 1 and numbers else None


def _value(record: Record, key: str) -> int:
    return next(int(o.partition("=")[2]) for o in record["overrides"] if o.startswith(f"{key}="))


def _label(record: Record) -> str:
    ranks = "" if record["ranks"] == 1 else f", {record['ranks']} ranks"
    return record["case"].partition(": ")[2].replace(", ", "\n") + ranks


def _bars(axes: Any, records: Sequence[Record]) -> None:
    labels = list(dict.fromkeys(map(_label, records)))
    contenders = list(dict.fromkeys(record["contender"] for record in records))
    width = 0.8 / len(contenders)
    for index, contender in enumerate(contenders):
        found = {_label(r): r["tokens_per_s"] for r in records if r["contender"] == contender}
        places = [at + index * width for at, label in enumerate(labels) if label in found]
        axes.bar(places, [found[label] for label in labels if label in found], width, label=contender)
    axes.set_xticks([at + 0.4 - width / 2 for at in range(len(labels))], labels, fontsize=8)
    axes.set_ylabel("tokens a second")
    axes.legend(frameon=False, fontsize=8)


def exponent(xs: Sequence[float], ys: Sequence[float]) -> float:
    """Slope of the least-squares line through the logarithms: y grows as x to that power."""
    return statistics.linear_regression([math.log(x) for x in xs], [math.log(y) for y in ys]).slope


def _lines(axes: Any, records: Sequence[Record], key: str) -> None:
    for contender in dict.fromkeys(record["contender"] for record in records):
        of = sorted((_value(r, key), r["timing"]["median"]) for r in records if r["contender"] == contender)
        xs, ys = zip(*of, strict=True)
        grown = f", to the power {exponent(xs, ys):.2f}" if len(xs) > 1 else ""
        axes.loglog(xs, ys, "o-", label=contender + grown)
    values = sorted({_value(record, key) for record in records})
    axes.set_xticks(values, [str(value) for value in values])
    axes.minorticks_off()
    axes.set_xlabel(key)
    axes.set_ylabel("seconds a step")
    axes.legend(frameon=False, fontsize=8)


def _parts(axes: Any, records: Sequence[Record], swept: str | None) -> None:
    ours = [record for record in records if record.get("breakdown")]
    names = list(dict.fromkeys(name for record in ours for name in record["breakdown"]))
    below = [0.0] * len(ours)
    for name in names:
        shares = [r["breakdown"].get(name, 0.0) / sum(r["breakdown"].values()) for r in ours]
        axes.bar(range(len(ours)), shares, 0.6, bottom=below, label=name)
        below = [a + b for a, b in zip(below, shares, strict=True)]
    labels = [_label(record) if swept is None else str(_value(record, swept)) for record in ours]
    axes.set_xticks(range(len(ours)), labels, fontsize=8)
    axes.set_xlabel(swept or "")
    axes.set_ylabel("share of our step")
    axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
