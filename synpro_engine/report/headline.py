"""The few numbers that stand at the top of the page and at the end of the terminal's output.

Knows which numbers matter and how to say that one is not there yet; lays nothing out.
"""

from dataclasses import dataclass

from synpro_engine.report.model import ReportData
from synpro_engine.report.numbers import compact, count, fixed, percent, seconds

_NOT_YET = "not run yet"


@dataclass(frozen=True, kw_only=True)
class Fact:
    """A label, a value with its unit, and a remark in small print (may be empty)."""

    label: str
    value: str
    note: str = ""


def total_seconds(data: ReportData) -> float | None:
    """Time spent in the stages; None before the first one ends."""
    spent = [stage.seconds for stage in data.stages if stage.seconds is not None]
    return sum(spent) if spent else None


def unfinished(data: ReportData) -> list[str]:
    """Names of the stages that are known but have no result."""
    return [stage.name for stage in data.stages if stage.status not in ("done", "reused")]


def statement(data: ReportData) -> tuple[str, str]:
    """The first sentence of the statement, which is set apart, and the others."""
    first, _, rest = data.statement.partition(". ")
    return first.rstrip(".") + ".", rest


def facts(data: ReportData) -> list[Fact]:
    """The key numbers of a run, in reading order."""
    parts = [_time(data), *_models(data), _organic(data), _plateau(data), _synthetic(data), *_held_out(data)]
    return [*parts, *_overlap(data)]


def _time(data: ReportData) -> Fact:
    spent = total_seconds(data)
    done = len(data.stages) - len(unfinished(data))
    return Fact(
        label="Time in stages",
        value=seconds(spent) if spent is not None else _NOT_YET,
        note=f"{done} of {len(data.stages)} stages done" if data.stages else "",
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
    epochs = data.tokens.epochs_before_plateau
    end = "the budget ended" if data.plateau is not None and not data.plateau.stopped else "the plateau"
    note = f"read {epochs:.1f} times before {end}" if epochs else ""
    return Fact(label="Organic text", value=f"{count(data.tokens.organic_unique)} tokens", note=note)


def _plateau(data: ReportData) -> Fact:
    if data.plateau is None:
        return Fact(label="Plateau", value=_NOT_YET)
    step = f"step {count(data.plateau.step)}"
    if not data.plateau.stopped:
        return Fact(label="Plateau", value="not reached", note=f"the budget ended first, at {step}")
    return Fact(label="Plateau", value=step, note="found by the detector")


def _synthetic(data: ReportData) -> Fact:
    made = sum(data.tokens.synthetic.values()) if data.tokens else 0
    if not data.tokens or not made:
        return Fact(label="Synthetic text", value=_NOT_YET)
    accepted, generated = sum(y.accepted for y in data.yields), sum(y.generated for y in data.yields)
    shares = f"{count(accepted)} of {count(generated)} completions accepted ({percent(accepted, generated)})"
    return Fact(label="Synthetic text", value=f"{count(made)} tokens", note=shares if generated else "")


def _held_out(data: ReportData) -> list[Fact]:
    if not data.held_out:
        return [Fact(label="Held-out loss", value=_NOT_YET)]
    return [
        Fact(
            label=f"Held-out loss, {row.name}",
            value=f"{fixed(row.bits_per_byte)} bits per byte",
            note=f"{fixed(row.per_token)} nats per token",
        )
        for row in data.held_out
    ]


def _overlap(data: ReportData) -> list[Fact]:
    shared = data.corpus.overlap.get("validation") if data.corpus else None
    if shared is None:
        return []
    note = f"{count(shared.copied_documents)} of {count(shared.documents)} pieces by half or more"
    return [Fact(label="Validation text also trained on", value=f"{percent(shared.share)} of 13-grams", note=note)]
