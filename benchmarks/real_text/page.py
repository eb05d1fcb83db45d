"""What docs/real-text.md shows of the records: what there is and what is missing, tables, and a picture."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from benchmarks.common.multiples import interval, mean, on_record
from benchmarks.common.tables import markdown
from benchmarks.common.worth import Trained, curve_of, trained, worth
from benchmarks.data_bound.losses import best, end
from benchmarks.real_text.later import later
from benchmarks.real_text.study import BASE, CURVES, SIZES, UNTUNED, UNTUNED_SIZES, expected
from benchmarks.real_text.texts import Record, arm_names, cost, of_arm, texts, tuning
from synpro_engine.cycle import Recipe
from synpro_engine.report.svg import SERIES

OURS = "tuned"
_LARGER = (*SIZES, *UNTUNED_SIZES)
_NOTHING = "*No records yet.*"
_PICTURE = "![Losses by arm, and what they are worth in unique text](images/real_text.png)"
_RIVALS = ("tuned-without-influence", "placebo", "best-of-n", "prompted", "prompted-all", "augmented", BASE)
_TEXTS = {"passages": "other prose", "questions": "answers"}


def blocks(records: Sequence[Record], recipe: Recipe) -> dict[str, str]:
    """By the name of its mark in the page: each table, or that there is nothing to show."""
    tables = {
        "state": _state(records, expected(recipe)),
        "size": _size(recipe),
        "arms": _arms(records),
        "pairs": _pairs(records),
        "worth": worth(_trained(records), CURVES),
        "curve": _curve(records),
        "texts": texts(records),
        "tuning": tuning(records),
        "later": later(records),
        "cost": cost(records),
        "picture": _PICTURE if of_arm(records) else "",
    }
    return {f"real-text-{name}": table or _NOTHING for name, table in tables.items()}


def told_elsewhere(records: Sequence[Record]) -> str:
    """What docs/evidence.md has of the study: its multiples, once there are any."""
    return worth(_trained(records), CURVES) or "*None yet: no training of it is on record.*"


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


def _size(recipe: Recipe) -> str:
    """What the recipe says of the student, its training and what is generated."""
    model, made, arms = recipe.model, recipe.generate, recipe.continued
    step = recipe.pretrain.global_batch * model.seq_len
    share = arms.synthetic_share or 0.0
    return "\n".join(
        (
            f"The organic text is {recipe.corpus.max_train_tokens:,} tokens of presidential messages,",
            f"the student a model of {model.parameter_count() / 1e6:.2f}M parameters with a vocabulary of",
            f"{model.vocab_size:,}. It trains {recipe.pretrain.max_steps:,} steps of {step:,} tokens to theta at a",
            f"constant rate; from there each arm takes {arms.steps:,} more, in which the rate decays.",
            f"Of an arm's windows {share:.0%} ({share * arms.steps * step:,.0f} tokens) are of synthetic text,",
            f"which is made of up to {made.max_slices:,} slices of at most {made.max_chars:,} characters.",
        )
    )


def _rates(one: Record) -> str:
    trained, sampled = one["student_tokens_per_s"], one["sampled_tokens_per_s"]
    step = one["tuning_step_seconds"]
    return f"{trained:,.0f} tokens a second trained on, {sampled:.0f} sampled, {step:.0f} s a step of tuning"


def _trained(records: Sequence[Record]) -> dict[str, Trained]:
    return {name: trained(of_arm(records, name), best) for name in arm_names(records)}


def _arms(records: Sequence[Record]) -> str:
    base, rows = _losses(records, BASE), list[tuple[str, ...]]()
    for name in (name for name in arm_names(records) if name not in _LARGER):
        mine = of_arm(records, name)
        found, last = mean([best(one) for one in mine]), mean([end(one) for one in mine])
        than = "" if name in (BASE, UNTUNED) else _paired(_losses(records, name), base)
        others = [_mean_of([one["losses"].get(text) for one in mine]) for text in _TEXTS]
        rows.append((name, str(len(mine)), f"{found.value:.3f}", interval(found), f"{last.value:.3f}", than, *others))
    headings = ("arm", "seeds", "loss", "95 %", "at the end", f"against {BASE}, by seed", *_TEXTS.values())
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
    for of, arm in ((of, arm) for of, arms in CURVES.items() for arm in arms):
        mine = of_arm(records, arm)
        if mine:
            tokens, found = mine[0]["unique_tokens"], mean([best(one) for one in mine])
            epochs = f"{mine[0]['tokens'] / tokens:.1f}"
            rows.append((of, f"{tokens:,}", epochs, str(len(mine)), f"{found.value:.3f}", interval(found)))
    return markdown(("curve", "unique tokens", "epochs", "seeds", "loss", "95 %"), rows) if rows else ""


def draw(records: Sequence[Record], path: Path) -> None:
    """Write a PNG, where there are records: the arms' losses by seed, and where they lie on the curve."""
    if not of_arm(records):
        return
    from matplotlib.figure import Figure

    names, found = [name for name in arm_names(records) if name not in _LARGER], _trained(records)
    curves = {of: curve for of, arms in CURVES.items() if (curve := curve_of(found, arms)) is not None}
    # Without a curve there is nothing to hold losses to.
    figure = Figure(figsize=(11 if curves else 5.5, 4.5), layout="constrained")
    left, *others = figure.subplots(1, 2 if curves else 1, squeeze=False)[0]
    for place, name in enumerate(reversed(names)):
        losses = list(_losses(records, name).values())
        left.scatter(losses, [place] * len(losses), s=12, color="tab:gray", alpha=0.6)
        left.scatter([mean(losses).value], [place], s=40, color="tab:blue")
    left.set_yticks(range(len(names)), list(reversed(names)))
    left.set(title="loss by arm: seeds, and their mean", xlabel="nats a token, held-out messages")
    for right in others:
        for (of, curve), dashes in zip(curves.items(), ("-", "--"), strict=False):
            right.plot(curve.tokens, curve.means, color="black", marker="o", linestyle=dashes, label=of)
        for number, name in enumerate(names):
            value = mean(list(_losses(records, name).values())).value
            right.axhline(value, color=SERIES[number % len(SERIES)], linewidth=1, label=name)
        right.set(title="what it is worth in unique tokens", xlabel="unique tokens", ylabel="nats a token")
        right.set_xscale("log")
        right.legend(fontsize=7)
    for axes in (left, *others):
        axes.grid(visible=True, alpha=0.3)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
