"""What repetition is tuned to: the settings that pretraining and every arm of the study have."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.data_bound.arms import SWEEPS
from benchmarks.data_bound.losses import best_trial

Record = Mapping[str, Any]
PUBLISHED = (
    "pretrain.optimizer.weight_decay=1.0",
    "pretrain.dropout.embedding=0.1",
    "pretrain.dropout.residual=0.1",
)
"""Taken where no sweep is on record: ten times the usual decay, of up to thirty that are published (Kim et al., arXiv
2509.14786), and the dropout of NanoGPT Slowrun's baseline."""


def settings_record(swept: Sequence[Record]) -> Record:
    """The settings, as overrides of the recipe, and where they are from. swept: records of `benchmarks.data_bound`.

    Of its sweeps the one that tunes optimizer, decay and dropout together, else the one of AdamW's rate and decay.
    """
    for name in ("all", "tuned"):
        trials = [trial for one in swept if one.get("sweep") == name for trial in one["trials"]]
        complete = [trial for trial in trials if trial["state"] == "complete"]
        if complete:
            best = best_trial({"trials": complete})
            found = [f"{key}={value}" for key, value in best["settings"].items()]
            told = f"trial {best['trial']} of the sweep `{name}` of benchmarks.data_bound, the best of {len(complete)}"
            told += f" that came to their end, of {len(trials)}"
            return _record([*SWEEPS[name].settings, *found], told, swept=True)
    return _record(PUBLISHED, "published figures (Kim et al.; NanoGPT Slowrun), for no sweep is on record", swept=False)


def _record(settings: Sequence[str], source: str, *, swept: bool) -> Record:
    return {"bench": "real_text_settings", "settings": list(settings), "source": source, "swept": swept}
