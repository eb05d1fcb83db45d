"""The costs of a whole run, and what to know of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch

from synpro_engine.cycle.arm_files import judge_files
from synpro_engine.cycle.external import is_put_away, task_keys
from synpro_engine.cycle.forecast.cost import Cost
from synpro_engine.cycle.forecast.models import Models
from synpro_engine.cycle.forecast.sizes import Sizes
from synpro_engine.cycle.forecast.stages import costs
from synpro_engine.cycle.forecast.text import read_too_often, train_tokens
from synpro_engine.cycle.layouts import check_recipe
from synpro_engine.cycle.plan import planned
from synpro_engine.cycle.rates import Rates
from synpro_engine.cycle.recipe import Recipe


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """Costs by stage in the order of the run."""

    recipe: Recipe
    ranks: int
    dtype: torch.dtype
    per_token: float
    """FLOPs of a token of pretraining, which its rate is of: forward and backward, and forward of each teacher."""
    costs: tuple[Cost, ...]
    remarks: tuple[str, ...]

    def seconds(self, cost: Cost, rates: Rates) -> float | None:
        """How long a stage takes; None where a rate that it needs is not known."""
        # Only rates that this stage needs: a plan without a sampler's rate still times pretraining.
        if (cost.flops and rates.trained is None) or (cost.sampled and rates.sampled is None) or cost.tokens is None:
            return None
        # Sampling is bound by memory and by one token after the other, so its time goes by tokens and not by FLOPs.
        drawn = cost.sampled / rates.sampled if rates.sampled else 0.0
        return drawn + (cost.flops / (rates.trained * self.per_token) if rates.trained else 0.0)


def forecast(recipe: Recipe, ranks: int) -> Forecast:
    """Count a run of `recipe` on so many ranks; UserError for a layout that cannot run it."""
    check_recipe(recipe, ranks)
    models = Models.of(recipe, ranks)
    tokens, guessed = train_tokens(recipe)
    found = costs(planned(recipe, ranks), Sizes(recipe=recipe, models=models, train_tokens=tokens))
    laid_out = tuple(replace(cost, layout=recipe.layout_of(cost.stage, ranks)) for cost in found)
    remarks = [*models.remarks, *_not_counted(recipe), *guessed, *read_too_often(recipe, tokens)]
    remarks += [remark for cost in laid_out for remark in _on_the_host(cost)]
    per_token = models.per_token + models.per_token_taught
    return Forecast(
        recipe=recipe,
        ranks=ranks,
        dtype=models.theta.dtype,
        per_token=per_token,
        costs=laid_out,
        remarks=tuple(remarks),
    )


def _not_counted(recipe: Recipe) -> Iterator[str]:
    """What is not there to be looked into, and what is left out."""
    # The corpus and models are looked into, and say so themselves.
    looked_into = {f"reward.judges.{name}.model" for name in recipe.reward.judges.in_job}
    files = ("tokenizer.path", *sum(task_keys(recipe), ()), *judge_files(recipe.reward))
    files += ("mix.organic.scores",) if recipe.mix.from_file else ()
    for key in files:
        if key not in looked_into and is_put_away(recipe.at(key)):
            yield f"`{key}`: {recipe.at(key)} is not there"
    if any(reference.source is not None for reference in recipe.references.values()):
        yield "references from files are counted as full as their caps allow"
    if recipe.generate.server is not None:
        yield "`generate.server` samples: --sampled-per-s is its rate, and its memory is not counted"
    if recipe.pretrain.tasks_every:
        yield "questions (`pretrain.tasks_every`) are not counted"
    if recipe.corpus.max_held_out_tokens is None:
        yield "without `corpus.max_held_out_tokens` evaluations are not counted"


def _on_the_host(cost: Cost) -> Iterator[str]:
    if cost.offloaded:
        yield f"{cost.stage}: {cost.offloaded / 2**30:,.2f} GiB a rank of activations wait in pinned memory of the host"
    if cost.waits:
        yield f"{cost.stage}: {cost.waits / 2**30:,.2f} GiB a rank of Muon's sampled momenta wait in the host's memory"
    if cost.parked:
        yield f"{cost.stage}: {cost.parked / 2**30:,.2f} GiB a rank are parked in pinned memory of the host"
