"""Which trial and which losses of a training are quoted."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

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
