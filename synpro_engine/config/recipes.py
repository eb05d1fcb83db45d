"""The recipes that come with the package, by name."""

from __future__ import annotations

from pathlib import Path

from synpro_engine.config.errors import UserError, nearest

_FOLDER = Path(__file__).parents[1] / "recipes"


def recipe_names() -> list[str]:
    """Names of the recipes, sorted."""
    return sorted(path.stem for path in _FOLDER.glob("*.yaml"))


def recipe_path(recipe: str) -> Path:
    """The file of a recipe given by name, or by its own .yaml path; UserError (with the nearest name) for neither."""
    if Path(recipe).suffix in (".yaml", ".yml"):
        return Path(recipe)
    names = recipe_names()
    if recipe not in names:
        raise UserError(f"no recipe `{recipe}`{nearest(recipe, names)}; there are {', '.join(names)}, or a .yaml file")
    return _FOLDER / f"{recipe}.yaml"
