"""When every stage began and how long it took."""

from __future__ import annotations

from collections.abc import Sequence

from synpro_engine.config import partial_path, read_manifest
from synpro_engine.cycle.stages import Stage, stage_times
from synpro_engine.cycle.summaries.finished_run import FinishedRun
from synpro_engine.report import StageTiming, Timeline


def timeline(run: FinishedRun, stages: Sequence[Stage]) -> Timeline:
    """All stages that the recipe has, in their order; starts count from that of the first one that is known."""
    times = stage_times(run.directory)
    first = min((ended - seconds for seconds, ended in times.values()), default=0.0)
    rows = []
    for stage in stages:
        # What a round begins with is its arms' together, whichever of them it is counted with.
        arm = stage.arm if run.recipe.arms and not stage.name.startswith("round-") else None
        if stage.name not in run.done:
            begun = partial_path(run.directory / stage.name).exists()
            rows.append(StageTiming(name=stage.name, arm=arm, status="begun" if begun else "waiting"))
            continue
        # A run that was copied without its `stages.jsonl` still has its stages.
        seconds, ended = times.get(stage.name, (None, None))
        rows.append(
            StageTiming(
                name=stage.name,
                arm=arm,
                status="done",
                seconds=seconds,
                start=None if seconds is None or ended is None else ended - seconds - first,
                artifact=stage.name,
                content_hash=read_manifest(run.directory / stage.name).content_hash,
            )
        )
    return Timeline(stages=tuple(rows))
