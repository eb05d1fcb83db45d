"""What stands at the top of the page and at the end of the terminal's output: a warning and the key numbers."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from synpro_engine.report.data import ReportData
from synpro_engine.report.numbers import compact, count, fixed, percent, seconds
from synpro_engine.report.sections.arms import HeldOutLoss
from synpro_engine.report.sections.timeline import Timeline

_NOT_YET = "not run yet"
_WITHOUT_CURVE = "For that the run needs arms of more unique text, which Effective tokens names."


@dataclass(frozen=True, kw_only=True)
class Fact:
    """A label, a value with its unit, and a remark in small print (may be empty)."""

    label: str
    value: str
    note: str = ""


def statement(data: ReportData) -> tuple[str, str]:
    """What the numbers can and cannot show: the first sentence, which is set apart, and the others."""
    by_arm: dict[str, set[int | None]] = {}
    for row in data.arms.held_out:
        by_arm.setdefault(row.name, set()).add(row.seed)
    if not by_arm:
        return ("Nothing was measured on held-out text yet.", "So this page tells what was done, and no result.")
    seeds = max(map(len, by_arm.values()))
    if seeds < 2:
        return (
            "A run of one seed cannot show an effective-token gain.",
            "Each arm was trained once, so a difference between the arms below cannot be told from chance. What the "
            "run shows is that every part of the cycle is real and wired: the model is pretrained, its loss is "
            "watched for a plateau, influence is measured on that very model, the generator is tuned against it, and "
            "the model is trained on what the generator wrote.",
        )
    limits = (
        f"Intervals are over up to {seeds} seeds of training: they say nothing of another theta, another generator or "
        "another text."
    )
    if data.effective_tokens.curves:
        return ("What arms are worth in unique text stands under Effective tokens.", limits)
    return ("Arms are compared here, and no multiple of the text is told.", f"{limits} {_WITHOUT_CURVE}")


def facts(data: ReportData) -> list[Fact]:
    """The key numbers of a run, in reading order."""
    training = [*_models(data), _organic(data), _plateau(data)]
    return [_time(data.timeline), *training, _synthetic(data), *_held_out(data), *_efficiency(data), *_overlap(data)]


def _time(timeline: Timeline) -> Fact:
    spent, known = timeline.total_seconds, len(timeline.stages)
    return Fact(
        label="Time in stages",
        value=seconds(spent) if spent is not None else _NOT_YET,
        note=f"{known - len(timeline.unfinished)} of {known} stages done" if known else "",
    )


def _models(data: ReportData) -> list[Fact]:
    return [
        Fact(
            label=f"{model.role.capitalize()} model",
            value=f"{compact(model.parameters)} parameters",
            note=model.description,
        )
        for model in data.models
    ]


def _organic(data: ReportData) -> Fact:
    if data.tokens is None:
        return Fact(label="Organic text", value=_NOT_YET)
    epochs, plateau = data.tokens.epochs_before_plateau, data.pretraining.plateau
    end = "the budget ended" if plateau is not None and not plateau.stopped else "the plateau"
    note = f"read {epochs:.1f} times before {end}" if epochs else ""
    return Fact(label="Organic text", value=f"{count(data.tokens.organic_unique)} tokens", note=note)


def _plateau(data: ReportData) -> Fact:
    plateau = data.pretraining.plateau
    if plateau is None:
        return Fact(label="Plateau", value=_NOT_YET)
    step = f"step {count(plateau.step)}"
    if not plateau.stopped:
        return Fact(label="Plateau", value="not reached", note=f"the budget ended first, at {step}")
    return Fact(label="Plateau", value=step, note="found by the detector")


def _synthetic(data: ReportData) -> Fact:
    made = sum(data.tokens.synthetic.values()) if data.tokens else 0
    if not data.tokens or not made:
        return Fact(label="Synthetic text", value=_NOT_YET)
    yields = data.yields.values()
    accepted, completions = sum(y.accepted for y in yields), sum(y.completions for y in yields)
    share = f"{count(accepted)} of {count(completions)} completions kept ({percent(accepted, completions)})"
    return Fact(label="Synthetic text", value=f"{count(made)} tokens", note=share if completions else "")


def _held_out(data: ReportData) -> list[Fact]:
    if not data.arms.held_out:
        return [Fact(label="Held-out loss", value=_NOT_YET)]
    by_arm: dict[str, list[HeldOutLoss]] = {}
    for row in data.arms.held_out:
        if row.text == "validation":
            by_arm.setdefault(row.name, []).append(row)
    return [_mean_loss(name, rows) for name, rows in by_arm.items()]


def _mean_loss(name: str, rows: Sequence[HeldOutLoss]) -> Fact:
    """Of an arm's seeds together."""
    bits, nats = (_mean([getattr(row, key) for row in rows]) for key in ("bits_per_byte", "per_token"))
    seeds = f", mean of {len(rows)} seeds" if len(rows) > 1 else ""
    label, value = f"Held-out loss, {name}", f"{fixed(bits)} bits per byte"
    return Fact(label=label, value=value, note=f"{fixed(nats)} nats per token{seeds}")


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known else None


def _efficiency(data: ReportData) -> list[Fact]:
    note = "of its {} unique tokens a plain recipe needs for this loss, by the recipe's table"
    return [
        Fact(label=f"Data efficiency, {one.name}", value=one.value, note=note.format(count(one.unique_tokens)))
        for one in data.data_efficiency
    ]


def _overlap(data: ReportData) -> list[Fact]:
    shared = data.corpus.overlap.get("validation") if data.corpus else None
    if shared is None:
        return []
    note = f"{count(shared.copied_documents)} of {count(shared.documents)} pieces by half or more"
    return [Fact(label="Validation text also trained on", value=f"{percent(shared.share)} of 13-grams", note=note)]
