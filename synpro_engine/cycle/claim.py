"""Whose run a directory holds: the resolved recipe stored there, against the one at hand.

Knows the stored config; what else lies in the directory is the stages'. Everything here is for the rank that writes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from synpro_engine.config import UserError, atomic_write_text, read_yaml, to_yaml
from synpro_engine.cycle.recipe import Recipe
from synpro_engine.cycle.stages import stage_times

_CONFIG = "config.yaml"
# A run may go on in another layout: what is computed is the same up to rounding. Verifying computes nothing.
_FREE = ("parallel", "verify")


def claim(directory: Path, recipe: Recipe) -> None:
    """Store the resolved recipe in the directory, made where it is not there; UserError when another's run is there.

    A directory in which no stage was ever finished may be claimed by another recipe.
    """
    if directory.exists() and not directory.is_dir():
        raise UserError(f"{directory}: is a file; --dir names the run's directory")
    if (directory / _CONFIG).exists() and stage_times(directory):
        _check(directory, recipe)
    directory.mkdir(parents=True, exist_ok=True)
    atomic_write_text(directory / _CONFIG, to_yaml(recipe))


def check_claimed(directory: Path, recipe: Recipe) -> None:
    """Make sure that this recipe's run is there, and change nothing; UserError when it is not."""
    if not (directory / _CONFIG).exists():
        raise UserError(f"{directory}: no run is there; `synpro run` makes one")
    _check(directory, recipe)


def _check(directory: Path, recipe: Recipe) -> None:
    difference = _first_difference(read_yaml(directory / _CONFIG), recipe.model_dump(mode="json"))
    if difference:
        raise UserError(f"{directory}: holds a run of another config: {difference}; give another --dir")


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
