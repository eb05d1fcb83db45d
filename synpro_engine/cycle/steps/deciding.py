"""The stage that says whether another round follows, so that this is decided once and for all who ask later."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from synpro_engine.config import Record, UserError, atomic_write_text, json_text, read_manifest, read_record
from synpro_engine.config.artifact import MANIFEST
from synpro_engine.cycle.arm_sections import CycleConfig
from synpro_engine.cycle.run_layout import DECISION, TRAINING_RESULT
from synpro_engine.cycle.settings import DecideSettings
from synpro_engine.cycle.stages import stage_times
from synpro_engine.dist import Topology, on_main, say

_REFERENCE = "reference"


class Decision(Record):
    """What `DECISION` holds."""

    go_on: bool
    reason: str
    gain: float | None
    """Fall of the reference loss in the round, as a share of what it was; None where either was not finite."""
    tokens: int
    """That the arm has trained on, those of pretraining among them."""
    hours: float
    """That the arm's stages took so far, with all that they were made from."""


class _Trained(Record):
    tokens: int
    losses: dict[str, float | None]


@dataclass(frozen=True)
class _Spent:
    gain: float | None
    tokens: int
    hours: float


def decide_stage(
    into: Path, settings: DecideSettings, trained: Sequence[Path], directory: Path, topology: Topology
) -> None:
    """Decide behind a round. trained: pretraining, and the arm's training stages so far; directory: the run's."""

    def decide() -> str:
        results = [read_record(stage / TRAINING_RESULT, _Trained) for stage in trained]
        times, line = stage_times(directory), _line(directory, trained)
        hours = sum(seconds for name, (seconds, _) in times.items() if name in line) / 3600
        spent = _Spent(_gain(trained, results), sum(result.tokens for result in results), hours)
        limit = _limit(settings.cycle, spent)
        decision = {"go_on": limit is None, "reason": limit or _told(spent), **asdict(spent)}
        atomic_write_text(into / DECISION, json_text(decision, indent=2) + "\n")
        return f"{'no' if limit else 'another'} round follows: {decision['reason']}"

    say(topology, on_main(topology, decide))


def _line(directory: Path, trained: Sequence[Path]) -> set[str]:
    """The stages that are there of those that the arm's own were made from, with these."""
    # By manifests: the times still name stages that were removed since, and those of other arms.
    line, left = set[str](), [str(stage.relative_to(directory)) for stage in trained]
    while left:
        name = left.pop()
        if name not in line and (directory / name / MANIFEST).exists():
            line.add(name)
            left += read_manifest(directory / name).parents
    return line


def _gain(trained: Sequence[Path], results: Sequence[_Trained]) -> float | None:
    """Of the last round."""
    for stage, result in zip(trained, results, strict=True):
        if _REFERENCE not in result.losses:
            raise UserError(f"{stage / TRAINING_RESULT}: damaged (`losses` has no {_REFERENCE})")
    before, after = (result.losses[_REFERENCE] for result in results[-2:])
    return None if before is None or after is None or before <= 0 else (before - after) / before


def _limit(config: CycleConfig, spent: _Spent) -> str | None:
    """The first limit that is reached, in words."""
    if config.min_gain is not None and (spent.gain is None or spent.gain < config.min_gain):
        gain = "is no number" if spent.gain is None else f"fell by {spent.gain:.3%}"
        return f"the reference loss {gain} in this round (`cycle.min_gain` is {config.min_gain:.3%})"
    if config.max_tokens is not None and spent.tokens >= config.max_tokens:
        return f"{spent.tokens:,} tokens are trained on (`cycle.max_tokens` is {config.max_tokens:,})"
    if config.max_hours is not None and spent.hours >= config.max_hours:
        return f"the stages took {spent.hours:.2f} hours (`cycle.max_hours` is {config.max_hours:g})"
    return None


def _told(spent: _Spent) -> str:
    gain = "" if spent.gain is None else f"the reference loss fell by {spent.gain:.3%} in this round; "
    return f"{gain}{spent.tokens:,} tokens and {spent.hours:.2f} hours so far"
