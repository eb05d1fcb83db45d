"""Which losses of a training are quoted, and the curve of untuned repetition over unique tokens."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.data_bound.arms import CURVE

Record = Mapping[str, Any]


def best(record: Record) -> float:
    """Loss on the validation split at the evaluation of the lowest loss on the reference split."""
    return min(record["curve"], key=lambda line: line["reference"])["validation"]


def end(record: Record) -> float:
    """Loss on the validation split after the last step."""
    return record["curve"][-1]["validation"]


def unique_curve(records: Sequence[Record]) -> list[tuple[float, float]]:
    """Unique tokens and the loss that untuned repetition has of them at best, from the fewest tokens to the most."""
    points = []
    for arm in CURVE:
        mine = [record for record in records if record.get("arm") == arm]
        if mine:
            points.append((float(mine[0]["unique_tokens"]), statistics.fmean(map(best, mine))))
    return points
