"""Whose run a directory holds: the resolved recipe stored there, against the one at hand.

Knows the stored config, and which places are no place for a run; what else lies in the directory is the stages'.
Everything here is for the rank that writes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from synpro_engine.config import UserError, atomic_write_text, load_config, outside_artifacts, read_yaml, to_yaml
from synpro_engine.config.artifact import MANIFEST
from synpro_engine.config.lock import LOCK
from synpro_engine.cycle.recipe import Recipe
from synpro_engine.cycle.run_layout import CONFIG, is_round

# Begins the file, so that nobody's own config.yaml is taken for one of ours.
_MARK = "# The resolved recipe of a run of synpro_engine, which wrote what lies beside this file.\n"
# A run may go on in another layout: what is computed is the same up to rounding. Verifying computes nothing.
_FREE = ("parallel", "verify")


def check_place(directory: Path, written: Iterable[str]) -> None:
    """Refuse a directory that is no place for a run, and change nothing.

    written: what a run writes there, by name. Raises UserError for a file, a place inside an artifact or inside a round
    of another run, and a directory that holds one of those names but no run.
    """
    if directory.exists() and not directory.is_dir():
        raise UserError(f"{directory}: is a file; --dir names the run's directory")
    outside_artifacts(directory)
    for place in (directory.resolve(), *directory.resolve().parents):
        if is_round(place) and _is_marked(place.parent / CONFIG):
            raise UserError(f"{directory}: lies inside the run {place.parent}; give another --dir")
    if (directory / CONFIG).exists():
        if not _is_marked(directory / CONFIG):
            raise UserError(
                f"{directory / CONFIG}: is not a run's of this version of synpro_engine; give another --dir"
            )
        return
    lock = directory / LOCK
    found = [path for name in written if (path := directory / name).exists()]
    found += [lock] if lock.is_file() else []
    for path in found:
        raise UserError(f"{path}: is there, but no {CONFIG} of a run, so it is not this run's; give another --dir")


def claim(directory: Path, recipe: Recipe) -> None:
    """Store the resolved recipe in the directory, which is there; UserError when another's run is there.

    A directory in which no stage was ever finished may be claimed by another recipe.
    """
    if (directory / CONFIG).exists() and any(directory.glob(f"*/{MANIFEST}")):
        _check(directory, read_yaml(directory / CONFIG), recipe)
    atomic_write_text(directory / CONFIG, _MARK + to_yaml(recipe))


def check_claimed(directory: Path, recipe: Recipe) -> None:
    """Make sure that this recipe's run is there, and change nothing; UserError when it is not.

    A key that is younger than the run counts as its default: what is there may be read, though not gone on with.
    """
    if not (directory / CONFIG).exists():
        raise UserError(f"{directory}: no run is there; `synpro run` makes one")
    stored = read_yaml(directory / CONFIG)
    with contextlib.suppress(UserError):  # of a version with other keys: told as a difference
        stored = load_config(Recipe, stored).model_dump(mode="json")
    _check(directory, stored, recipe)


def _is_marked(config: Path) -> bool:
    if not config.is_file():
        return False
    with config.open("rb") as file:
        return file.read(len(_MARK)) == _MARK.encode()


def _check(directory: Path, stored: dict[str, Any], recipe: Recipe) -> None:
    difference = _first_difference(stored, recipe.model_dump(mode="json"))
    if difference:
        raise UserError(f"{directory / CONFIG}: holds a run of another config: {difference}; give another --dir")


def _first_difference(theirs: Any, ours: Any, path: str = "") -> str:
    """The first key where two resolved configs differ, in words; "" when they agree."""
    if isinstance(theirs, dict) and isinstance(ours, dict):
        for key in [*ours, *(key for key in theirs if key not in ours)]:
            if not path and key in _FREE:
                continue
            found = _first_difference(theirs.get(key), ours.get(key), f"{path}.{key}" if path else key)
            if found:
                return found
        return ""
    return "" if theirs == ours else f"`{path}` is {theirs} there, {ours} here"
