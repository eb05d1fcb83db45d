"""The costs of stages that train theta or measure it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from synpro_engine.cycle.forecast.cost import ACTIVATIONS, LOGITS, TEACHERS, TRAINED, WEIGHTS, Cost, sampled
from synpro_engine.cycle.forecast.sizes import Sizes
from synpro_engine.cycle.recipe import Recipe
from synpro_engine.cycle.run_layout import SAMPLE
from synpro_engine.train.footprint import Footprint


def training(sizes: Sizes, stage: str, steps: int) -> Cost:
    """Of pretraining, or an arm's training, of so many steps."""
    recipe, models, config = sizes.recipe, sizes.models, sizes.recipe.pretrain
    step = float(config.global_batch) * recipe.model.seq_len
    tokens = steps * step
    # The one before the first step, and those on the way, or the one at the end where there are none.
    evaluated = _held_out(recipe) * (1 + (steps // config.eval_every if config.eval_every else 1))
    checkpoints = config.keep_checkpoints + (steps // config.keep_every if config.keep_every else 0)
    return Cost(
        stage=stage,
        tokens=tokens,
        # A pass that is only read is a third of one that is trained on: no backward, which is two.
        flops=(tokens + evaluated / 3) * models.per_token + tokens * models.per_token_taught,
        offloaded=models.theta.offloaded(config.micro_batch, recipe.model.seq_len),
        held=_trained(models.theta, config.micro_batch)
        | {TEACHERS: sum(one.teaching(step) for one in models.teachers)},
        disk=checkpoints * models.theta.saved(optimizer=True),
    )


def probe(sizes: Sizes, stage: str) -> Cost:
    """Of a walk's steps, or of the gradients that the optimizer's next step is made of."""
    recipe, theta, config = sizes.recipe, sizes.models.theta, sizes.recipe.probe
    walks, pretrain, waits = config.kind == "walk", recipe.pretrain, 0.0
    if walks:
        tokens = float(config.steps) * config.global_batch * recipe.model.seq_len * (2 if config.control else 1)
    else:
        tokens = float(config.sampled_steps) * pretrain.global_batch * recipe.model.seq_len
        tokens += min(config.reference_tokens or _held_out(recipe) / 2, _held_out(recipe) / 2)
        products = torch.bfloat16 if pretrain.optimizer.muon.products == "bfloat16" else theta.dtype
        waits = theta.sampled(config.sampled_steps + 1, products)  # and the reference's own
    return Cost(
        stage=stage,
        tokens=tokens,
        flops=tokens * sizes.models.per_token,
        held=_trained(replace(theta, averages=0, offload_layers=0), config.micro_batch),
        waits=waits,
        disk=theta.saved() if walks else recipe.model.parameter_count() * 4.0,
    )


def evaluation(sizes: Sizes, stage: str, models: int, made: Sequence[Cost]) -> Cost:
    """Of so many models on what is held out; of a sample of the last round's texts, and their sources.

    made: the costs of the stages that generated these.
    """
    recipe, per_token = sizes.recipe, sizes.models.per_token
    cap, new = recipe.corpus.max_held_out_tokens or 0, recipe.generate.sampling.max_new_tokens
    held_out = float(models) * (cap + sum(tasks.max_tokens or cap for tasks in recipe.held_out.values()))
    texts = 2 * sum(min(cost.sampled, SAMPLE * new) for cost in made)
    return Cost(
        stage=stage,
        tokens=None if sampled(made) is None else held_out + texts,
        flops=(held_out / 3 + texts * sizes.influence_passes) * per_token,
        held={WEIGHTS: 2 * sizes.models.theta.weights},
    )


def _held_out(recipe: Recipe) -> float:
    """Tokens of one evaluation on the way, on the validation split and all references."""
    cap = recipe.corpus.max_held_out_tokens or 0
    return float(cap + sum(one.max_tokens or cap for one in recipe.references.values()))


def _trained(theta: Footprint, rows: int) -> dict[str, float]:
    kept, logits = (of(rows, theta.model.seq_len) for of in (theta.activations, theta.logits))
    return {TRAINED: theta.training, ACTIVATIONS: kept, LOGITS: logits}
