"""What can be known to fail before the first stage has run: layouts and sizes that do not fit together."""

from __future__ import annotations

from synpro_engine.config import UserError
from synpro_engine.cycle.recipe import Recipe
from synpro_engine.dist import Topology
from synpro_engine.model.config import check_layout


def check_recipe(recipe: Recipe, topology: Topology) -> None:
    """Refuse a recipe that this layout cannot finish; UserError names the key."""
    check_layout(recipe.model, topology)
    if recipe.generator.model is not None:
        check_layout(recipe.generator.model, topology)
    if topology.pp.size > 1:
        raise UserError("`parallel.pp`: the generator samples without a pipeline, so a whole cycle takes pp = 1")
    for key, size in _shared_out(recipe).items():
        if size % topology.dp.size:
            raise UserError(f"`{key}`: {size} cannot be divided by {topology.dp.size} data-parallel ranks")


def _shared_out(recipe: Recipe) -> dict[str, int]:
    """Counts that the data-parallel ranks share out evenly, by key."""
    batches = {"pretrain.global_batch": recipe.pretrain.global_batch, "probe.global_batch": recipe.probe.global_batch}
    prompts = {f"tune.{name}.prompts_per_step": tune.prompts_per_step for name, tune in recipe.tune.items()}
    return batches | prompts
