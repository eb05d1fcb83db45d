"""The report's part on synthesis: tuning, completions, yields, influence and diversity of the texts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from synpro_engine.cycle.finished import FinishedRun
from synpro_engine.cycle.synthesis import CORPUS
from synpro_engine.evaluate import Diversity
from synpro_engine.report import DiversityRow, InfluenceValues, OperationYield, RewardCurves, Sample
from synpro_engine.rl.trainer import SAMPLES
from synpro_engine.synth import read_yield

_SAMPLES_PER_OPERATION = 6


def influence(run: FinishedRun) -> tuple[InfluenceValues, ...]:
    """Of accepted texts and their sources, by operation."""
    return tuple(
        InfluenceValues(operation=name, sources=tuple(v["sources"]), generated=tuple(v["generated"]))
        for name, v in run.results().get("influence", {}).items()
        if v["generated"]
    )


def rewards(run: FinishedRun) -> tuple[RewardCurves, ...]:
    """One set of curves per tuned operation and round."""
    found = []
    for number, operation, records in _tuned(run, "grpo", ""):
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
    """The last completions that tuning wrote down, with their rewards."""
    found = []
    for _, operation, records in _tuned(run, "sample", SAMPLES):
        for r in records[-_SAMPLES_PER_OPERATION:]:
            parts = {k.removeprefix("reward/"): v for k, v in r.items() if k.startswith("reward/")}
            accepted = r["reason"] is None
            found.append(
                Sample(
                    operation=operation,
                    source_id=r["source_id"],
                    source=r["source"],
                    text=r["text"] if accepted else r["completion"],
                    accepted=accepted,
                    reason=r["reason"] or "",
                    total=r["reward"],
                    rewards=parts,
                )
            )
    return tuple(found)


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
            found[name] = OperationYield(operation=name, kept=one.accepted, rejects=one.rejected)
    return tuple(found.values())


def diversity(run: FinishedRun) -> tuple[DiversityRow, ...]:
    """Of the organic text and of each operation's."""
    rows: Mapping[str, Any] = run.results().get("diversity", {})
    return tuple(DiversityRow(name=name, measures=Diversity(**measures)) for name, measures in rows.items())


def _tuned(run: FinishedRun, kind: str, folder: str) -> list[tuple[int, str, list[dict[str, Any]]]]:
    found = [(n, op, run.metrics(f"round-{n}/tune-{op}", kind, folder)) for n in run.rounds for op in run.recipe.tune]
    return [entry for entry in found if entry[2]]
