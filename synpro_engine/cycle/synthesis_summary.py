"""The report's part on synthesis: tuning, completions, yields, influence and diversity of the texts."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from synpro_engine.cycle.evaluation import accepted_records, source_texts
from synpro_engine.cycle.finished import FinishedRun
from synpro_engine.cycle.synthesis import CORPUS
from synpro_engine.evaluate import Diversity
from synpro_engine.report import DiversityRow, InfluenceValues, OperationYield, RewardCurves, Sample
from synpro_engine.synth import read_yield
from synpro_engine.synth.generate import REJECTS

_KEPT_SAMPLES, _REFUSED_SAMPLES = 5, 2


def influence(run: FinishedRun) -> tuple[InfluenceValues, ...]:
    """Of accepted texts and their sources, by operation."""
    per_nat = run.recipe.probe.kind == "next_step"
    return tuple(
        InfluenceValues(operation=name, per_nat=per_nat, sources=tuple(v["sources"]), generated=tuple(v["generated"]))
        for name, v in run.results().get("influence", {}).items()
        if v["generated"]
    )


def rewards(run: FinishedRun) -> tuple[RewardCurves, ...]:
    """One set of curves per tuned operation and round."""
    found = []
    for number, operation, records in _tuned(run):
        parts = [name for name in records[0] if name.startswith("reward/")]
        label = operation if run.recipe.rounds == 1 else f"{operation}, round {number}"
        found.append(
            RewardCurves(
                operation=label,
                steps=tuple(r["step"] for r in records),
                total=tuple(r["reward"] for r in records),
                parts={name.removeprefix("reward/"): tuple(r[name] for r in records) for name in parts},
                weights=run.recipe.reward.weights(operation),
                kl=tuple(r["kl"] for r in records),
                lengths=tuple(r["length"] for r in records),
            )
        )
    return tuple(found)


def samples(run: FinishedRun) -> tuple[Sample, ...]:
    """Of each operation's corpus of the newest finished round: some that were kept, and some that were refused."""
    found = []
    for operation in run.recipe.generate.operations:
        finished = [stage for n in run.rounds if (stage := f"round-{n}/generate-{operation}") in run.done]
        if finished:
            found += _corpus_samples(run, operation, run.directory / finished[-1])
    return tuple(found)


def _corpus_samples(run: FinishedRun, operation: str, stage: Path) -> list[Sample]:
    kept = [(record, "") for record in accepted_records(stage)[:_KEPT_SAMPLES]]
    lines = (stage / CORPUS / REJECTS).read_text(encoding="utf-8").splitlines()[:_REFUSED_SAMPLES]
    refused = [(record, record["reason"]) for record in map(json.loads, lines)]
    sources = source_texts(run.directory / "tokenize")
    found = []
    for record, reason in [*kept, *refused]:
        where, rewards = record["provenance"], record.get("rewards", {})
        found.append(
            Sample(
                operation=operation,
                source_id=f"{where['source']}:{where['start']}-{where['end']}",
                source=sources[where["source"]][where["start"] : where["end"]],
                text=record["raw"] if reason else record["text"],
                accepted=not reason,
                reason=reason,
                total=rewards.get("total", 0.0 if reason else None),
                rewards={name: value for name, value in rewards.items() if name != "total"},
            )
        )
    return found


def yields(run: FinishedRun) -> tuple[OperationYield, ...]:
    """What generation accepted and refused, over all rounds."""
    found: dict[str, OperationYield] = {}
    for number in run.rounds:
        for operation in run.recipe.generate.operations:
            stage = f"round-{number}/generate-{operation}"
            if stage not in run.done:
                continue
            one = read_yield(run.directory / stage / CORPUS).by_operation[operation]
            name = operation if run.recipe.rounds == 1 else f"{operation}, round {number}"
            found[name] = OperationYield(operation=name, kept=one.accepted, rejects=one.rejected, cut=one.cut_chars)
    return tuple(found.values())


def diversity(run: FinishedRun) -> tuple[DiversityRow, ...]:
    """Of the organic text and of each operation's."""
    rows: Mapping[str, Any] = run.results().get("diversity", {})
    return tuple(DiversityRow(name=name, measures=Diversity(**measures)) for name, measures in rows.items())


def _tuned(run: FinishedRun) -> list[tuple[int, str, list[dict[str, Any]]]]:
    found = [(n, op, run.metrics(f"round-{n}/tune-{op}", "grpo")) for n in run.rounds for op in run.recipe.tune]
    return [entry for entry in found if entry[2]]
