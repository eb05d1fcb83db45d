"""From a run's directory to the report: reads what the stages wrote, finished or not, and computes nothing new."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from synpro_engine.backend import platform
from synpro_engine.config import Record, atomic_write_text, json_text, read_manifest, read_record, versions
from synpro_engine.cycle import synthesis_summary as synthesis
from synpro_engine.cycle import training_summary as training
from synpro_engine.cycle.corpus_summary import corpus
from synpro_engine.cycle.finished import FinishedRun
from synpro_engine.cycle.in_run_summary import in_run
from synpro_engine.cycle.recipe import Recipe
from synpro_engine.cycle.run_layout import ENVIRONMENT, PRETRAIN
from synpro_engine.cycle.stages import Stage, stage_times
from synpro_engine.dist import Topology
from synpro_engine.report import Environment, ReportData, StageTiming


class _Environment(Record):
    """What `ENVIRONMENT` holds."""

    device: str
    layout: str
    versions: dict[str, str]
    implementations: dict[str, str]
    git_commit: str | None


def write_environment(directory: Path, recipe: Recipe, topology: Topology) -> None:
    """Record what this run runs on; called by the rank that writes."""
    choices = (platform.attention(recipe.model.head_size), platform.optimizer())
    facts = {
        "device": platform.device_name(),
        "layout": topology.layout,
        "versions": versions(),
        "implementations": {choice.part: f"{choice.uses}: {choice.why}" for choice in choices},
        "git_commit": _git_commit(),
    }
    atomic_write_text(directory / ENVIRONMENT, json_text(facts, indent=2) + "\n")


def _git_commit() -> str | None:
    """The commit of the source tree this package runs from; None where git does not track it (installed, say)."""
    git, here = ["git", "-C", str(Path(__file__).parent)], Path(__file__).name
    try:  # an installed package may lie within somebody's repository: that one's commit is not ours
        subprocess.run([*git, "ls-files", "--error-unmatch", here], capture_output=True, check=True)
        return subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
    except (FileNotFoundError, subprocess.CalledProcessError):  # no git on this machine, or not its file
        return None


def report_data(directory: Path, recipe: Recipe, stages: Sequence[Stage]) -> ReportData:
    """All that the page shows; parts of stages that are not finished stay empty."""
    run = FinishedRun(directory, recipe, (stage.name for stage in stages))
    return ReportData(
        title=f"SynPro cycle: {recipe.name}",
        recipe=recipe.name,
        created=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        config=recipe.model_dump(mode="json"),
        models=training.models(run),
        stages=_timings(run, stages),
        corpus=corpus(run),
        curve_unit="step",
        pretrain=training.curves(run, PRETRAIN),
        arms=training.arms(run),
        plateau=training.plateau(run),
        in_run=in_run(run),
        influence=synthesis.influence(run),
        rewards=synthesis.rewards(run),
        yields=synthesis.yields(run),
        samples=synthesis.samples(run),
        diversity=synthesis.diversity(run),
        tokens=training.tokens(run),
        held_out=run.results().held_out,
        environment=_environment(run),
    )


def _timings(run: FinishedRun, stages: Sequence[Stage]) -> tuple[StageTiming, ...]:
    """Seconds of every stage, and when it began."""
    times = stage_times(run.directory)
    first = min((ended - seconds for seconds, ended in times.values()), default=0.0)
    rows = []
    for stage in stages:
        if stage.name not in run.done:
            rows.append(StageTiming(name=stage.name, status="not run"))
            continue
        seconds, ended = times.get(stage.name, (None, None))
        rows.append(
            StageTiming(
                name=stage.name,
                status="done",
                seconds=seconds,
                start=None if seconds is None or ended is None else ended - seconds - first,
                artifact=stage.name,
                content_hash=read_manifest(run.directory / stage.name).content_hash,
            )
        )
    return tuple(rows)


def _environment(run: FinishedRun) -> Environment | None:
    """What the run ran on."""
    path = run.directory / ENVIRONMENT
    if not path.exists():
        return None
    return Environment(**read_record(path, _Environment).model_dump(), seeds={"run": run.recipe.seed})
