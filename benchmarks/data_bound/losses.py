"""Which trial and which losses of a training are quoted, and the curve of untuned repetition over unique tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.data_bound.arms import CURVE
from synpro_engine.evaluate.effective_tokens import UniqueCurve

Record = Mapping[str, Any]


def best(record: Record) -> float:
    """Loss on the validation split at the evaluation of the lowest loss on the reference split."""
    return min(record["curve"], key=lambda line: line["reference"])["validation"]


def end(record: Record) -> float:
    """Loss on the validation split after the last step."""
    return record["curve"][-1]["validation"]


def best_trial(sweep: Record) -> Record:
    """Of a sweep's record: the complete trial of the lowest loss on the reference split."""
    return min((trial for trial in sweep["trials"] if trial["state"] == "complete"), key=lambda trial: trial["loss"])


def unique_curve(records: Sequence[Record]) -> UniqueCurve | None:
    """Unique tokens and the losses that untuned repetition has of them at best; None of one size."""
    found = [mine for arm in CURVE if (mine := [record for record in records if record.get("arm") == arm])]
    if len(found) < 2:
        return None
    return UniqueCurve(
        tokens=tuple(float(mine[0]["unique_tokens"]) for mine in found),
        losses=tuple(tuple(map(best, mine)) for mine in found),
    )
