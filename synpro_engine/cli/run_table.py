"""How far a run is, as lines for a terminal."""

from __future__ import annotations

from collections.abc import Iterator

from synpro_engine.cycle.status import ArmStatus, RunStatus, StageStatus
from synpro_engine.report.numbers import MISSING, count, fixed, seconds
from synpro_engine.report.terminal import aligned


def lines(found: RunStatus) -> Iterator[str]:
    """A table of stages, one of arms, and what is left."""
    if found.changed is not None:
        yield f"the run is of another config: {found.changed}; what of it would be made anew, `synpro run` tells"
    yield from aligned([("stage", "state", "done", "time", "left"), *map(_stage, found.stages)])
    if not found.whole:
        yield "more stages may follow: a round says when it ends whether there is another"
    done = sum(stage.state == "done" for stage in found.stages)
    left = "" if found.is_done else f", {seconds(found.seconds_left)} left of those that are known"
    yield f"{done} of {len(found.stages)} stages done{left if found.seconds_left is not None else ''}"
    if found.arms:
        yield ""
        texts = list(dict.fromkeys(text for arm in found.arms for text in arm.losses))
        head = ("arm", "stage", "seed", "step", *(f"{text} loss" for text in texts))
        yield from aligned([head, *(_arm(arm, texts) for arm in found.arms)])


def _stage(stage: StageStatus) -> tuple[str, ...]:
    done = MISSING if stage.done is None or stage.of is None else f"{count(stage.done)} of {count(stage.of)}"
    left = MISSING if stage.state == "done" or stage.seconds_left is None else seconds(stage.seconds_left)
    return stage.name, stage.state, done, seconds(stage.seconds), left


def _arm(arm: ArmStatus, texts: list[str]) -> tuple[str, ...]:
    losses = (fixed(arm.losses.get(text)) for text in texts)
    return arm.name, arm.stage, MISSING if arm.seed is None else str(arm.seed), count(arm.step), *losses
