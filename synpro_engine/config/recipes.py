"""The recipes that come with the package, by name."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from synpro_engine.config.addresses import is_address
from synpro_engine.config.base import read_yaml
from synpro_engine.config.errors import UserError, nearest, without_credentials

_FOLDER = Path(__file__).parents[1] / "recipes"


def recipe_names() -> list[str]:
    """Names of the recipes, sorted."""
    return sorted(path.stem for path in _FOLDER.glob("*.yaml"))


def recipe_path(recipe: str) -> Path:
    """The file of a recipe given by name, or by its own .yaml path; UserError (with the nearest name) for neither."""
    if is_address(recipe):
        raise UserError(f"{without_credentials(recipe)}: recipes are read from this machine's disk alone")
    if Path(recipe).suffix in (".yaml", ".yml"):
        return Path(recipe)
    names = recipe_names()
    if recipe not in names:
        raise UserError(f"no recipe `{recipe}`{nearest(recipe, names)}; there are {', '.join(names)}, or a .yaml file")
    return _FOLDER / f"{recipe}.yaml"


def read_recipe(path: Path) -> dict[str, Any]:
    """The settings of a recipe's file: where its key `base` names another recipe, those of that one with these in it.

    Sections are put together key by key, lists and nulls replace what is below them. A base's own path goes from the
    folder of the file that names it. UserError for what cannot be read, and for a circle.
    """
    layers: list[dict[str, Any]] = []
    seen: list[Path] = []
    while True:
        seen.append(path.resolve())
        layers.append(read_yaml(path))
        base = layers[-1].pop("base", None)
        if base is None:
            break
        if not isinstance(base, str):
            raise UserError(f"{path}: `base`: expected a recipe's name or file")
        try:
            path = path.parent / recipe_path(base)
        except UserError as error:
            raise UserError(f"{path}: `base`: {error}") from None
        if path.resolve() in seen:
            raise UserError(f"{path}: `base`: leads in a circle")
    settings: dict[str, Any] = {}
    for layer in reversed(layers):
        settings = merged(settings, layer)
    return settings


def merged(below: Any, above: Any) -> Any:
    """Settings with others in place: mappings are put together key by key, anything else replaces what is there."""
    if not isinstance(below, Mapping) or not isinstance(above, Mapping):
        return above
    return {**below, **{key: merged(below.get(key), value) for key, value in above.items()}}
