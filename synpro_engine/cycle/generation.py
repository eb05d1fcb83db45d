"""The generation of a run as other jobs see it: how far it is, and taking part in it."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path

from synpro_engine.config import UserError, partial_path
from synpro_engine.config.artifact import MANIFEST
from synpro_engine.cycle.cycle import Cycle
from synpro_engine.cycle.plan import looked_at
from synpro_engine.cycle.recipe import Recipe
from synpro_engine.cycle.run_layout import CORPUS
from synpro_engine.cycle.stages import Stage
from synpro_engine.dist import Stopped, asked_to_stop, broadcast_object, on_main, say
from synpro_engine.synth import corpus_status, work_directory, work_status
from synpro_engine.synth.generate import SETTINGS
from synpro_engine.synth.status import GenerationStatus

_LOOK_S = 5.0


def generation_status(recipe: Recipe, directory: Path) -> dict[str, GenerationStatus | None]:
    """By the name of each stage that generates: how far it is, or None where it has not begun.

    UserError where there is no run of this recipe's name.
    """
    if not directory.is_dir():
        raise UserError(f"{directory}: no such run; --dir names another one")
    found: dict[str, GenerationStatus | None] = {}
    rounds = looked_at(recipe, directory).generated.values()
    for name in dict.fromkeys(name for made in rounds for name in made.values()):
        corpus, work = directory / name / CORPUS, _work(directory, name)
        if (directory / name / MANIFEST).exists():
            found[name] = corpus_status(corpus)
        else:
            found[name] = work_status(work) if (work / SETTINGS).exists() else None
    return found


def _work(directory: Path, stage: str) -> Path:
    return work_directory(partial_path(directory / stage) / CORPUS)


def join_generation_of(cycle: Cycle, *, patience_s: float) -> None:
    """Answer batches of the stages that another job of this run generates, as long as there are any. Collective.

    patience_s: how long to wait where no such stage is at work. Raises UserError when none was from the beginning on,
    Stopped when this job is asked to stop.
    """
    cycle.open_directory()
    topology, joined, idle_since = cycle.topology, set[str](), time.monotonic()
    while True:
        if asked_to_stop(topology):
            raise Stopped(f"{cycle.directory}: stopped; the job that owns it goes on")
        name = on_main(topology, lambda: _in_progress(cycle, joined))
        if name is not None:
            say(topology, f"[{name}] joined")
            cycle.look()  # it may be of a round that nobody knew of when this job began
            _join(cycle, next(stage for stage in cycle.stages() if stage.name == name))
            joined.add(name)
            say(topology, f"[{name}] nothing is left that nobody is at")
            idle_since = time.monotonic()
        elif broadcast_object(_all_done(cycle) or time.monotonic() - idle_since > patience_s, topology):
            break
        else:
            time.sleep(_LOOK_S)
    if not joined:
        raise UserError(f"{cycle.directory}: no stage of it generates; `synpro generate` without --join begins one")


def _join(cycle: Cycle, stage: Stage) -> None:
    work = partial(stage.work, helper=True)  # pyright: ignore[reportCallIssue] - stages that generate take it
    work(partial_path(cycle.directory / stage.name), topology=cycle.place_of(stage.name))


def _in_progress(cycle: Cycle, joined: set[str]) -> str | None:
    """A stage with batches to do that this job has not come to the end of."""
    for name, status in generation_status(cycle.recipe, cycle.directory).items():
        if status is not None and status.done < status.prompts and name not in joined:
            return name
    return None


def _all_done(cycle: Cycle) -> bool:
    names = generation_status(cycle.recipe, cycle.directory)
    return all((cycle.directory / name / MANIFEST).exists() for name in names)
