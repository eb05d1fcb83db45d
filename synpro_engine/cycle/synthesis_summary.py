"""The report's part on synthesis: tuning, completions, yields, influence and diversity of the texts."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from pydantic import model_validator

from synpro_engine.config import Record, UserError, read_records
from synpro_engine.cycle.evaluation import Provenance, accepted_records, slice_of, source_texts
from synpro_engine.cycle.finished import FinishedRun
from synpro_engine.cycle.run_layout import CORPUS, TOKENIZE, Round
from synpro_engine.report import DiversityRow, InfluenceValues, RewardCurves, Sample, YieldRow
from synpro_engine.synth import read_yield
from synpro_engine.synth.generate import REJECTS, YIELD

_KEPT_SAMPLES, _REFUSED_SAMPLES = 5, 2


class _Rejected(Record):
    reason: str
    raw: str
    provenance: Provenance


class _Step(Record):
    """A record of the kind `grpo`; the reward's parts stand in it under `reward/`. What was not finite is None."""

    step: int
    reward: float | None
    kl: float | None
    length: float | None
    parts: dict[str, float | None]

    @model_validator(mode="before")
    @classmethod
    def _gather(cls, fields: dict[str, object]) -> dict[str, object]:
        start = "reward/"
        return {**fields, "parts": {k.removeprefix(start): v for k, v in fields.items() if k.startswith(start)}}


class _Tuned(NamedTuple):
    """What one step of tuning is drawn from."""

    step: int
    reward: float
    kl: float
    length: float
    parts: dict[str, float]


def influence(run: FinishedRun) -> tuple[InfluenceValues, ...]:
    """Of accepted texts and their sources, by operation."""
    per_nat = run.recipe.probe.kind == "next_step"
    return tuple(
        InfluenceValues(operation=name, per_nat=per_nat, sources=_numbers(v.sources), generated=_numbers(v.generated))
        for name, v in run.results().influence.items()
        if _numbers(v.generated)
    )


def _numbers(values: Sequence[float | None]) -> tuple[float, ...]:
    """Those that were finite; JSON has null for the others."""
    return tuple(value for value in values if value is not None)


def rewards(run: FinishedRun) -> tuple[RewardCurves, ...]:
    """One set of curves per tuned operation and round."""
    found = []
    for number, operation, records in _tuned(run):
        parts = [name for name in records[0].parts if all(name in record.parts for record in records)]
        label = operation if run.recipe.rounds == 1 else f"{operation}, round {number}"
        found.append(
            RewardCurves(
                operation=label,
                steps=tuple(r.step for r in records),
                total=tuple(r.reward for r in records),
                parts={name: tuple(r.parts[name] for r in records) for name in parts},
                weights=run.recipe.reward.weights(operation),
                kl=tuple(r.kl for r in records),
                lengths=tuple(r.length for r in records),
            )
        )
    return tuple(found)


def samples(run: FinishedRun) -> tuple[Sample, ...]:
    """Of each operation's corpus of the newest finished round: some that were kept, and some that were refused."""
    found = []
    for operation in run.recipe.generate.operations:
        finished = [stage for n in run.rounds if (stage := Round(n).generate(operation)) in run.done]
        if finished:
            found += _corpus_samples(run, operation, run.directory / finished[-1])
    return tuple(found)


def _corpus_samples(run: FinishedRun, operation: str, stage: Path) -> list[Sample]:
    kept = [(r.text, r.provenance, "", r.rewards or {}) for r in accepted_records(stage)[:_KEPT_SAMPLES]]
    lines = itertools.islice(read_records(stage / CORPUS / REJECTS, _Rejected), _REFUSED_SAMPLES)
    refused = [(record.raw, record.provenance, record.reason, {}) for record in lines]
    shown = [*kept, *refused]
    sources = source_texts(run.directory / TOKENIZE, {where.source for _, where, _, _ in shown})
    found = []
    for text, where, reason, rewards in shown:
        found.append(
            Sample(
                operation=operation,
                source_id=f"{where.source}:{where.start}-{where.end}",
                source=slice_of(where, sources, stage),
                text=text,
                accepted=not reason,
                reason=reason,
                total=rewards.get("total", 0.0 if reason else None),
                rewards={name: value for name, value in rewards.items() if name != "total"},
            )
        )
    return found


def yields(run: FinishedRun) -> tuple[YieldRow, ...]:
    """What generation accepted and refused, over all rounds."""
    found: dict[str, YieldRow] = {}
    for number in run.rounds:
        for operation in run.recipe.generate.operations:
            stage = Round(number).generate(operation)
            if stage not in run.done:
                continue
            one = read_yield(run.directory / stage / CORPUS).by_operation.get(operation)
            if one is None:
                raise UserError(f"{run.directory / stage / CORPUS / YIELD}: damaged (it does not tell of {operation})")
            name = operation if run.recipe.rounds == 1 else f"{operation}, round {number}"
            found[name] = YieldRow(operation=name, accepted=one.accepted, rejected=one.rejected, cut=one.cut_chars)
    return tuple(found.values())


def diversity(run: FinishedRun) -> tuple[DiversityRow, ...]:
    """Of the organic text and of each operation's."""
    return tuple(DiversityRow(name=name, measures=measures) for name, measures in run.results().diversity.items())


def _tuned(run: FinishedRun) -> list[tuple[int, str, list[_Tuned]]]:
    """Steps by round and operation, but for those whose groups were all dropped or whose loss was not finite."""
    found = []
    for number, operation in itertools.product(run.rounds, run.recipe.tune):
        told: list[_Tuned] = []
        for r in run.metrics(Round(number).tune(operation), "grpo", _Step):
            if r.reward is not None and r.kl is not None and r.length is not None:
                parts = {name: value for name, value in r.parts.items() if value is not None}
                told.append(_Tuned(r.step, r.reward, r.kl, r.length, parts))
        if told:
            found.append((number, operation, told))
    return found
