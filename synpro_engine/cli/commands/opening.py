"""What commands on a run begin with: its recipe is read, and the ranks are divided as that says."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from synpro_engine.config import verification
from synpro_engine.cycle import Cycle, load_recipe
from synpro_engine.cycle.recipe_files import recipe_of_records
from synpro_engine.dist import broadcast_object, launched


@contextmanager
def opened_cycle(
    recipe: str, overrides: Sequence[str], directory: Path | None, *, models: bool = True, generates: bool = False
) -> Iterator[Cycle]:
    """The run of a recipe, while the job lasts.

    models: whether any is built, for which the ranks must be divided as the recipe says.
    generates: whether operations are worked with, whose files are run then; a run is read without them.
    """
    recipe_here = load_recipe(recipe, overrides) if generates else recipe_of_records(recipe, overrides, directory)
    if not models:
        recipe_here = recipe_here.undivided()
    with launched(recipe_here.parallel, recipe_here.seed, recipe_here.layouts) as topology:
        # Rank 0's, for the file may have been edited while the ranks came up.
        resolved = broadcast_object(recipe_here, topology)
        with verification(resolved.verify):
            yield Cycle(resolved, directory or Path("runs") / resolved.name, topology)
