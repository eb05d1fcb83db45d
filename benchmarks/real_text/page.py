"""What docs/real-text.md shows of the records: what there is and what is missing, tables, and a picture."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from benchmarks.common.multiples import interval, mean, multiples, on_record
from benchmarks.common.tables import markdown
from benchmarks.data_bound.losses import best, end
from benchmarks.real_text.study import SIZES, UNTUNED
from benchmarks.real_text.texts import Record, arm_names, cost, of_arm, texts, tuning
from synpro_engine.evaluate.effective_tokens import READINGS, UniqueCurve
from synpro_engine.report.svg import SERIES

BASE, OURS = "repetition", "tuned"
_NOTHING = "*No records yet.*"
_PICTURE = "![Losses by arm, and what they are worth in unique text](images/real_text.png)"
_RIVALS = ("tuned-without-influence", "placebo", "best-of-n", "prompted", "prompted-all", "augmented", BASE)
_TEXTS = {"passages": "other prose", "questions": "answers"}


def blocks(records: Sequence[Record], expected: Sequence[tuple[str, int]]) -> dict[str, str]:
    """By the name of its mark in the page: each table, or that there is nothing to show. expected: of a whole study."""
    tables = {
        "state": _state(records, expected),
        "arms": _arms(records),
        "pairs": _pairs(records),
        "curve": _curve(records),
        "texts": texts(records),
        "tuning": tuning(records),
        "cost": cost(records),
        "picture": _PICTURE if of_arm(records) else "",
    }
    return {f"real-text-{name}": table or _NOTHING for name, table in tables.items()}


def _losses(records: Iterable[Record], arm: str) -> dict[int, float]:
    """By seed: loss on the validation split at the evaluation of the lowest loss on the reference split."""
    return {one["seed"]: best(one) for one in of_arm(records, arm)}


def _state(records: Sequence[Record], expected: Sequence[tuple[str, int]]) -> str:
    lines = on_record({(one["arm"], one["seed"]) for one in of_arm(records)}, expected)
    for one in (one for one in records if one["bench"] == "real_text_settings"):
        keys = ", ".join(f"`{setting.removeprefix('pretrain.')}`" for setting in one["settings"])
        lines.append(f"Tuned repetition has {keys}: {one['source']}.")
    for one in [one for one in records if one["bench"] == "real_text_rates"][-1:]:
        told = ", ".join(f"{part} {hours:.1f}" for part, hours in one["hours"].items())
        lines.append(f"By rates measured beforehand ({_rates(one)}) the whole takes these hours of one core: {told}.")
    return "\n".join(lines)


def _rates(one: Record) -> str:
    trained, sampled = one["student_tokens_per_s"], one["sampled_tokens_per_s"]
    step = one["tuning_step_seconds"]
    return f"{trained:,.0f} tokens a second trained on, {sampled:.0f} sampled, {step:.0f} s a step of tuning"


def unique_curve(records: Sequence[Record]) -> UniqueCurve | None:
    """Unique tokens and the losses of training on them by the settings of tuned repetition; None of one size."""
    found = [mine for arm in (BASE, *SIZES) if (mine := of_arm(records, arm))]
    if len(found) < 2 or not of_arm(records, BASE):
        return None
    return UniqueCurve(
        tokens=tuple(float(mine[0]["unique_tokens"]) for mine in found),
        losses=tuple(tuple(map(best, mine)) for mine in found),
    )


def _arms(records: Sequence[Record]) -> str:
    curve, base, rows = unique_curve(records), _losses(records, BASE), list[tuple[str, ...]]()
    for name in (name for name in arm_names(records) if name not in SIZES):
        mine = of_arm(records, name)
        found, last = mean([best(one) for one in mine]), mean([end(one) for one in mine])
        than = "" if name in (BASE, UNTUNED) else _paired(_losses(records, name), base)
        others = [_mean_of([one["losses"].get(text) for one in mine]) for text in _TEXTS]
        worth = multiples([best(one) for one in mine], curve)
        rows.append(
            (name, str(len(mine)), f"{found.value:.3f}", interval(found), f"{last.value:.3f}", than, *worth, *others)
        )
    headings = (
        "arm", "seeds", "loss", "95 %", "at the end", f"against {BASE}, by seed",
        *(f"multiple, {name}" for name in READINGS), *_TEXTS.values(),
    )  # fmt: skip
    return markdown(headings, rows) if rows else ""


def _mean_of(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    return f"{mean(known).value:.3f}" if known else ""


def _paired(losses: Mapping[int, float], base: Mapping[int, float]) -> str:
    both = sorted(losses.keys() & base.keys())
    if not both:
        return ""
    found = mean([losses[seed] - base[seed] for seed in both])
    return f"{found.value:+.3f} ({interval(found)})"


def _pairs(records: Sequence[Record]) -> str:
    """What the arm tuned with influence is below each of those that it is held to."""
    ours, rows = _losses(records, OURS), []
    for name in _RIVALS:
        theirs = _losses(records, name)
        both = sorted(ours.keys() & theirs.keys())
        if both:
            found = mean([theirs[seed] - ours[seed] for seed in both])
            rows.append((name, f"{found.value:+.3f}", interval(found)))
    return markdown((f"{OURS} lies below", "by, seed by seed", "95 %"), rows) if rows else ""


def _curve(records: Sequence[Record]) -> str:
    rows = []
    for arm in (BASE, *SIZES):
        mine = of_arm(records, arm)
        if mine:
            tokens, found = mine[0]["unique_tokens"], mean([best(one) for one in mine])
            epochs = f"{mine[0]['tokens'] / tokens:.1f}"
            rows.append((f"{tokens:,}", epochs, str(len(mine)), f"{found.value:.3f}", interval(found)))
    return markdown(("unique tokens", "epochs", "seeds", "loss", "95 %"), rows) if rows else ""


def draw(records: Sequence[Record], path: Path) -> None:
    """Write a PNG, where there are records: the arms' losses by seed, and where they lie on the curve."""
    if not of_arm(records):
        return
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    names, curve = [name for name in arm_names(records) if name not in SIZES], unique_curve(records)
    for place, name in enumerate(reversed(names)):
        losses = list(_losses(records, name).values())
        left.scatter(losses, [place] * len(losses), s=12, color="tab:gray", alpha=0.6)
        left.scatter([mean(losses).value], [place], s=40, color="tab:blue")
    left.set_yticks(range(len(names)), list(reversed(names)))
    left.set(title="loss by arm: seeds, and their mean", xlabel="nats a token, held-out messages")
    if curve is not None:
        right.plot(curve.tokens, curve.means, color="black", marker="o", label="unique text")
    for number, name in enumerate(names):
        value = mean(list(_losses(records, name).values())).value
        right.axhline(value, color=SERIES[number % len(SERIES)], linewidth=1, label=name)
    right.set(title="what it is worth in unique tokens", xlabel="unique tokens", xscale="log", ylabel="nats a token")
    right.legend(fontsize=7)
    for axes in (left, right):
        axes.grid(visible=True, alpha=0.3)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
