"""The costs of stages around the generator: tuning it, drawing from it, and asking models what its texts are worth."""

from __future__ import annotations

import math
from collections.abc import Mapping

from synpro_engine.cycle.forecast.cost import (
    ACTIVATIONS,
    ASKED,
    CRITIC,
    GENERATOR,
    JUDGES,
    LOGITS,
    PAGES,
    PARKED,
    REFERENCE,
    TRAINED,
    WEIGHTS,
    Cost,
)
from synpro_engine.cycle.forecast.sizes import Sizes
from synpro_engine.cycle.forecast.text import CHARS_PER_TOKEN, TEXT_BYTES
from synpro_engine.rl.config import TuneConfig
from synpro_engine.train.footprint import Footprint
from synpro_engine.train.metrics import flops_per_token


def tuning(sizes: Sizes, stage: str, operation: str) -> Cost:
    """Of an operation's generator: completions drawn, judged and learnt from, and those of held-out slices."""
    config, generator = sizes.recipe.tune[operation], sizes.models.generator
    prompt, new = sizes.recipe.prompt.max_tokens, config.sampling.max_new_tokens
    weights, held_out = sizes.recipe.reward.weights(operation), config.held_out
    texts = float(config.steps) * config.prompts_per_step * config.group_size
    looks = float(len(held_out.due(config.steps))) * held_out.members
    # What is written of slices with planted facts is drawn, and not judged.
    measured, drawn = looks * held_out.slices, looks * (held_out.slices + held_out.facts)
    flops = _judging(sizes, texts + measured, new, weights)
    held = {PAGES: config.sampler.cache_mib * 2.0**20, **_judges(sizes, weights)}
    if generator is not None:
        # A prompt is read once for its completions, as many as stand in a micro-batch.
        together = min(config.group_size, config.micro_batch)
        read = prompt / together + new
        drawn_from = prompt / held_out.members + new  # a token of what is held out is only read
        passes = texts * read * _passes(config) + drawn * drawn_from / 3
        flops += passes * flops_per_token(generator.model, prompt + new)
        held |= _policy(config, generator, together, prompt + together * new)
    moves = frozenset[str]()
    if config.residency == "parked":
        # Each call of the sampler has pages of its own, unless graphs hold their addresses.
        moves = PARKED if config.sampler.graphs else PARKED | {PAGES}
    return Cost(
        stage=stage,
        tokens=(texts + drawn) * (prompt + new),
        flops=flops,
        sampled=(texts + drawn) * new,
        held=held,
        disk=generator.saved() if generator else 0.0,
        moves=moves,
    )


def _passes(config: TuneConfig) -> float:
    """Forward and backward passes of a token that is tuned on."""
    # Read and drawn, read again by the reference, the policy itself and a critic, and updated on.
    critic = config.critic is not None
    again = bool(config.kl_beta) + (config.importance is not None) + critic
    # Of weights that do not train no gradients are made, which are a third of a step's work.
    updated = 1 if config.lora is None else 2 / 3
    return (1 + again) / 3 + config.updates_per_rollout * (updated + critic)


def _policy(config: TuneConfig, generator: Footprint, together: int, length: int) -> dict[str, float]:
    """Memory of the policy, its reference and a critic; length: of a row, of a prompt and `together` completions."""
    held, reference, last = dict[str, float](), bool(config.kl_beta), config.train_last_blocks
    blocks = last or generator.model.layers
    # What does not train is the reference policy's too; with adapters that is every weight.
    if config.lora is not None:
        held[TRAINED] = generator.adapting(config.lora.rank, blocks)
    elif last is None:
        held[TRAINED], held[REFERENCE] = generator.training, reference * generator.weights
    else:
        held[TRAINED], held[REFERENCE] = generator.partly(blocks), reference * generator.weights_of(blocks)
    if config.critic is not None:
        trained = config.critic.train_last_blocks
        held[CRITIC] = generator.training if trained is None else generator.partly(trained)
    rows = config.micro_batch // together
    held[ACTIVATIONS] = generator.activations(rows, length)
    whole = last is None and config.lora is None
    held[LOGITS] = generator.logits(rows, length, trains=whole)
    if last is not None and (reference or config.importance is not None):
        # What the blocks that do not train make of a step is kept for its updates.
        held[ACTIVATIONS] += generator.hidden(config.prompts_per_step * config.group_size / together * length)
    return held


def generation(sizes: Sizes, stage: str, operation: str) -> Cost:
    """Of an operation's texts of one round."""
    recipe, config, generator = sizes.recipe, sizes.recipe.generate, sizes.models.generator
    weights = recipe.measured(operation) | dict.fromkeys(recipe.asked_of_texts, 1.0)
    new, held = config.sampling.max_new_tokens, _judges(sizes, weights)
    if config.server is None:
        held[PAGES] = config.sampler.cache_mib * 2.0**20
    tokens = sizes.train_tokens
    slices = config.max_slices if tokens is None else max(1.0, tokens * CHARS_PER_TOKEN / config.max_chars)
    if slices is None:
        return Cost(stage=stage, held=held)
    # By influence it may be less from the second round on.
    share = config.most_share if config.mixture == "influence" else config.shares.get(operation, 1.0)
    texts = max(1.0, share * min(slices, config.max_slices or slices)) * config.samples
    # The slice itself: the words of the prompt around it are few beside it.
    read = min(config.max_chars / CHARS_PER_TOKEN, recipe.prompt.max_tokens)
    flops = _judging(sizes, texts, new, weights)
    # With token files, which only texts of the pretrained model's own tokenizer have: rather too much.
    disk = texts * new * (TEXT_BYTES + (0 if config.join else sizes.id_bytes))
    if generator is not None:
        held[WEIGHTS] = generator.weights  # a server's answers are checked by them
        if config.server is None:
            flops += texts * (read + new) * flops_per_token(generator.model, int(read + new)) / 3
        else:
            disk += generator.saved()  # what the server loads
    return Cost(stage=stage, tokens=texts * (read + new), flops=flops, sampled=texts * new, held=held, disk=disk)


def stitched(sizes: Sizes) -> float | None:
    """Organic tokens in a round's megadocs, as if all documents had all their generations."""
    config, generate = sizes.recipe.mix.megadocs, sizes.recipe.generate
    if config is None or not config.with_source:
        return 0.0
    if sizes.train_tokens is None:
        return None
    generations = len(generate.names) * generate.samples
    return sizes.train_tokens * config.share * math.ceil(generations / config.generations)


def _judging(sizes: Sizes, texts: float, length: float, weights: Mapping[str, float]) -> float:
    """FLOPs of the rewards that ask a model, of each text and of its source: influence, and the generator's own."""
    tokens, models = 2 * texts * length, sizes.models
    flops = tokens * sizes.influence_passes * models.per_token if weights.get("influence") else 0.0
    if weights.get("quality") and sizes.recipe.reward.measures("quality") and models.generator is not None:
        flops += tokens * flops_per_token(models.generator.model, int(length)) / 3
    # What questions begin with is read once, and their words are few beside the texts.
    asked = (flops_per_token(judge.model, int(length)) for judge in _in_job(sizes, weights))
    return flops + sum(tokens * each / 3 for each in asked)


def _judges(sizes: Sizes, weights: Mapping[str, float]) -> dict[str, float]:
    """Memory of the models that rewards ask: theta, its probe, the generator as it came, and judges' own."""
    models = sizes.models
    return {
        ASKED: 2 * models.judge.weights,
        GENERATOR: models.generator.weights if models.generator else 0.0,
        JUDGES: sum(judge.weights for judge in _in_job(sizes, weights)),
    }


def _in_job(sizes: Sizes, weights: Mapping[str, float]) -> list[Footprint]:
    """The models in the job that judge what has a weight, each once."""
    judges = sizes.recipe.reward.judges.in_job
    asked = dict.fromkeys(judge.connection for name, judge in judges.items() if weights.get(name))
    return [sizes.models.in_job[one] for one in asked if one in sizes.models.in_job]
