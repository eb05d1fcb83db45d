"""What each arm of the world costs, in FLOPs by count from its settings: nothing of it was timed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from benchmarks.common.tables import markdown
from benchmarks.world.study import LEFT_OUT, texts_made, texts_scored
from benchmarks.world.trainings import ALL_TOKENS, BATCH_TOKENS, DIRECTION_BATCHES, SHAPE
from synpro_engine.train.metrics import flops_per_token

Record = Mapping[str, Any]


def costs(records: Sequence[Record]) -> str:
    """By arm: what it makes, what of it influence scores, and FLOPs; "" where no arm is there."""
    each, rows = flops_per_token(SHAPE, SHAPE.seq_len), list[tuple[str, ...]]()
    for name in dict.fromkeys(one["name"] for one in records if one["bench"] == "world"):
        if name in LEFT_OUT:
            continue
        made, scored = texts_made(name), texts_scored(name)
        # A score is a forward and a backward pass over a text, of about the length of those that were kept.
        lengths = [one["tokens"] / made for one in records if one.get("name") == name and "tokens" in one and made]
        tokens = scored * fmean(lengths) + DIRECTION_BATCHES * BATCH_TOKENS if scored and lengths else 0.0
        told = (f"{each * ALL_TOKENS / 1e12:.2f}", f"{each * tokens / 1e12:.2f}", f"{1 + tokens / ALL_TOKENS:.2f}")
        rows.append((name, f"{made:,}" if made else "", f"{scored:,}" if scored else "", *told))
    headings = (
        "arm", "texts trained on", "scored by influence", "TFLOP of training", "of scores", "both, over repetition's"
    )  # fmt: skip
    return markdown(headings, rows) if rows else ""
