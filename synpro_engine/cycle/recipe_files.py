"""Recipes from where they are kept: a name or a file with overrides, and code of the user's own that it names."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from synpro_engine.config import UserError, apply_overrides, read_yaml, validate
from synpro_engine.config.recipes import read_recipe, recipe_path
from synpro_engine.cycle.recipe import Recipe
from synpro_engine.cycle.run_layout import CONFIG
from synpro_engine.reward.config import without_nulls
from synpro_engine.reward.own import OwnReward
from synpro_engine.rl.own_surrogate import load_surrogate
from synpro_engine.synth import GenerateConfig, load_operations, split_reference


def load_recipe(recipe: str, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe by name or YAML file and set the overrides; UserError names file and key.

    The files of operations, rewards and surrogates that it names are run.
    """
    path, data = _read(recipe, overrides)
    # Here and nowhere else: a recipe that the user gives may name his own code, and one that is found may not.
    load_operations(_operations(data, path))
    found = validate(Recipe, data, str(path))
    for name, reference in found.reward.functions.items():
        OwnReward(name, reference)
    for operation in found.tune:
        if not any(found.reward.weights(operation).values()):  # of the user's own, whose weights its file says
            raise UserError(f"{path}: `tune`: {operation}: reward.{operation} gives no reward a weight to tune by")
    tunings = {"": found.tune}
    tunings |= {f"arms.{name}.": found.of_arm(name).tune for name, arm in found.arms.items() if arm.tune}
    for place, tune in tunings.items():
        for operation, config in tune.items():
            load_surrogate(config, f"{place}tune.{operation}.surrogate")
    return found


def recipe_of_records(recipe: str, overrides: Sequence[str] = (), directory: Path | None = None) -> Recipe:
    """The same for what reads the run in `directory` and generates nothing.

    No operation's file is run, and none need be there. Weights that only the file would say are those that the run has
    stored.
    """
    path, data = _read(recipe, overrides)
    own = [name for name, file in map(split_reference, _operations(data, path)) if file is not None]
    given = data.get("reward", {})
    if own and isinstance(given, Mapping):
        stored: dict[str, Any] = {}
        with contextlib.suppress(UserError):  # whoever opens the run says that there is none
            reward = read_yaml((directory or Path("runs") / str(data.get("name"))) / CONFIG).get("reward")
            stored = reward if isinstance(reward, dict) else {}  # it may be another program's file
        # Nulls alone take away from what the file says, and so did those of the run.
        said = {
            name: of
            for name, of in given.items()
            if name not in own or not isinstance(of, Mapping) or without_nulls(of)
        }
        data["reward"] = {name: stored.get(name, {}) for name in own} | said
    return validate(Recipe, data, str(path))


def _read(recipe: str, overrides: Sequence[str]) -> tuple[Path, dict[str, Any]]:
    path = recipe_path(recipe)
    return path, apply_overrides(read_recipe(path), overrides)


def _operations(data: Mapping[str, Any], path: Path) -> tuple[str, ...]:
    """The operations that a recipe names, if it does so in the right form; else validation says what is wrong."""
    named = data.get("generate", {}).get("operations") if isinstance(data.get("generate"), Mapping) else None
    if not (isinstance(named, list) and all(isinstance(name, str) for name in named)):
        return ()
    names = {"operations": "generate.operations"}
    return validate(GenerateConfig, {"operations": named}, str(path), names=names).operations
