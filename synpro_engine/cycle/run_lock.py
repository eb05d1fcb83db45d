"""Whose run a directory holds: the resolved recipe stored there, against the one at hand. For the rank that writes.

A run may go on with another recipe. What that changes is made anew, once the user has said so; the rest stays.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from synpro_engine.config import (
    Difference,
    UserError,
    atomic_write_text,
    differences,
    first_difference,
    load_config,
    outside_artifacts,
    read_manifest,
    read_yaml,
    to_yaml,
)
from synpro_engine.config.artifact import MANIFEST
from synpro_engine.config.lock import LOCK
from synpro_engine.cycle.recipe import Recipe
from synpro_engine.cycle.run_layout import ARMS, CONFIG, is_round
from synpro_engine.cycle.stages import Stage, remove_stages, stale_stages

# Begins the file, so that nobody's own config.yaml is taken for one of ours.
_MARK = "# The resolved recipe of a run of synpro_engine, which wrote what lies beside this file.\n"
_SHOWN = 3


def check_place(directory: Path, written: Iterable[str]) -> None:
    """Refuse a directory that is no place for a run, and change nothing.

    written: what a run writes there, by name. Raises UserError for a file, a place inside an artifact or inside a round
    of another run, and a directory that holds one of those names but no run.
    """
    if directory.exists() and not directory.is_dir():
        raise UserError(f"{directory}: is a file; --dir names the run's directory")
    # A finished artifact's files are those of its manifest: one more would make it a damaged one.
    outside_artifacts(directory)
    # Rounds and arms are folders of the run, not artifacts, so the check above does not see them.
    for place in (directory.resolve(), *directory.resolve().parents):
        if (is_round(place) or place.name == ARMS) and _is_marked(place.parent / CONFIG):
            raise UserError(f"{directory}: lies inside the run {place.parent}; give another --dir")
    if (directory / CONFIG).exists():
        if not _is_marked(directory / CONFIG):
            raise UserError(
                f"{directory / CONFIG}: is not a run's of this version of synpro_engine; give another --dir"
            )
        return
    # A folder of that name may be left by a run that was refused; a file is somebody's own.
    lock = directory / LOCK
    foreign = [path for name in written if (path := directory / name).exists()]
    foreign += [lock] if lock.is_file() else []
    for path in foreign:
        raise UserError(f"{path}: is there, but no {CONFIG} of a run, so it is not this run's; give another --dir")


def stale_of(directory: Path, recipe: Recipe, stages: Sequence[Stage], *, redo: bool) -> list[Stage]:
    """What was made in the directory with other settings, and all that was made from that; changes nothing.

    Raises UserError where there is such, and it may not be made anew: the message names what has changed.
    """
    stale = stale_stages(directory, stages)
    if stale and not redo:
        names = [stage.name for stage in stale]
        others = f" and {len(names) - 1} made from it" if len(names) > 1 else ""
        raise UserError(
            f"{directory}: {_changes(directory, recipe, stale[0])}: {names[0]}{others} would have to be made anew;"
            " --redo does that, and removes what is there; or give another --dir"
        )
    return stale


def claim(directory: Path, recipe: Recipe, stale: Sequence[Stage]) -> None:
    """Remove these stages, and store the resolved recipe in the directory, which is there."""
    # Before the recipe is stored: after a kill in between, the old recipe and what is left
    # of its stages still go together.
    remove_stages(directory, stale)
    atomic_write_text(directory / CONFIG, _MARK + to_yaml(recipe))


def check_claimed(directory: Path, recipe: Recipe, stages: Sequence[Stage]) -> None:
    """Make sure that this recipe's run is there, and change nothing; UserError when it is not.

    A key that is younger than the run counts as its default. Files may have moved, but another path must name what was
    read; under the same path they may have changed or gone since, for what was made of them is there.
    """
    if not (directory / CONFIG).exists():
        raise UserError(f"{directory}: no run is there; `synpro run` makes one")
    # Of recorded settings alone: how the work is done may differ between a run and a look at it.
    difference = first_difference(_stored(directory), recipe.recorded())
    stored = stored_recipe(directory)
    for stage in stages:
        for key in _changed_contents(directory, stage):
            places = [_place(of, stage.arm, key) for of in (stored, recipe)]
            if difference is None and places[0] != places[1]:
                difference = Difference(key, *places)
    if difference is not None:
        raise UserError(f"{directory / CONFIG}: holds a run of another config: {difference}; give another --dir")


def stored_recipe(directory: Path) -> Recipe | None:
    """The recipe of the run that is there; None where there is none, or one that this version cannot read."""
    with contextlib.suppress(UserError):
        return load_config(Recipe, read_yaml(directory / CONFIG))
    return None


def _place(recipe: Recipe | None, arm: str | None, key: str) -> Any:
    """What a setting names, as the arm has it; None of one that is not there."""
    if recipe is None or arm not in (None, *recipe.all_arms):
        return None
    with contextlib.suppress(KeyError, AttributeError):
        return (recipe if arm is None else recipe.of_arm(arm)).at(key)
    return None


def _is_marked(config: Path) -> bool:
    if not config.is_file():
        return False
    with config.open("rb") as file:
        return file.read(len(_MARK)) == _MARK.encode()


def _changes(directory: Path, recipe: Recipe, stale: Stage) -> str:
    """What has changed since the run was begun: settings by key, else what lies outside of it."""
    changes = [str(difference) for difference in differences(_stored(directory), recipe.recorded())]
    if changes:
        shown = "; ".join(changes[:_SHOWN])
        return f"{shown} and {len(changes) - _SHOWN} more settings" if len(changes) > _SHOWN else shown
    keys = _changed_contents(directory, stale)
    return f"what `{keys[0]}` names holds something else now" if keys else "what it was made from has changed"


def _changed_contents(directory: Path, stage: Stage) -> list[str]:
    """The keys under which a finished stage read something else than what they name now."""
    if not (directory / stage.name / MANIFEST).exists():
        return []
    read = read_manifest(directory / stage.name).config.get("contents", {})
    return [key for key, digest in stage.config.get("contents", {}).items() if read.get(key) != digest]


def _stored(directory: Path) -> dict[str, Any]:
    """The recorded settings of the run that is there; as they are where this version cannot read them."""
    if (recipe := stored_recipe(directory)) is not None:
        return recipe.recorded()
    return read_yaml(directory / CONFIG)  # of a version with other keys: told as a difference
