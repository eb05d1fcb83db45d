"""What the run ran on: recorded when the run begins, shown at its end."""

from __future__ import annotations

import subprocess
from pathlib import Path

from synpro_engine.backend import platform
from synpro_engine.config import Record, atomic_write_text, json_text, read_record, versions
from synpro_engine.cycle.recipe import Recipe
from synpro_engine.cycle.run_layout import ENVIRONMENT, IMPORT, PRETRAIN
from synpro_engine.cycle.summaries.finished_run import FinishedRun
from synpro_engine.dist import Topology
from synpro_engine.report import Environment


class _Environment(Record):
    """What `ENVIRONMENT` holds."""

    device: str
    layout: str
    versions: dict[str, str]
    implementations: dict[str, str]
    git_commit: str | None


def write_environment(directory: Path, recipe: Recipe, topology: Topology) -> None:
    """Record what this run runs on; called by the rank that writes."""
    # At the width of this model's heads, since a kernel may refuse it.
    choices = (platform.attention(recipe.model.head_size), platform.optimizer())
    facts = {
        "device": platform.device_name(),
        "layout": _layout(recipe, topology.world_size),
        "versions": versions(),
        "implementations": {choice.part: f"{choice.uses}: {choice.why}" for choice in choices},
        "git_commit": git_commit(),
    }
    atomic_write_text(directory / ENVIRONMENT, json_text(facts, indent=2) + "\n")


def _layout(recipe: Recipe, ranks: int) -> str:
    pretrained, generator = (str(recipe.layout_of(stage, ranks)) for stage in (PRETRAIN, IMPORT))
    return pretrained if pretrained == generator else f"pretrained model {pretrained}, generator {generator}"


def git_commit() -> str | None:
    """The commit of the source tree this package runs from; None where git does not track it (installed, say)."""
    git, here = ["git", "-C", str(Path(__file__).parent)], Path(__file__).name
    try:  # an installed package may lie within somebody's repository: that one's commit is not ours
        subprocess.run([*git, "ls-files", "--error-unmatch", here], capture_output=True, check=True)
        return subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
    except (FileNotFoundError, subprocess.CalledProcessError):  # no git on this machine, or not its file
        return None


def environment(run: FinishedRun) -> Environment | None:
    """What `write_environment` recorded, and the seed."""
    path = run.directory / ENVIRONMENT
    if not path.exists():
        return None
    stored = read_record(path, _Environment).model_dump()
    recipe = run.recipe
    seeds = {"run": recipe.seed} | ({} if recipe.pretrain.seed is None else {"pretraining": recipe.pretrain.seed})
    return Environment(**stored, seeds=seeds, tuned=_tuned(run.recipe))


def _tuned(recipe: Recipe) -> dict[str, str]:
    """What a sweep found, by key, and which one it was."""
    if (tuned := recipe.tuned) is None:
        return {}
    of = f"{tuned.sweep}, trial {tuned.trial} of {tuned.trials}: {tuned.measured} loss {tuned.loss:.4f}"
    return {key: str(value) for key, value in tuned.settings.items()} | {"by": of}
