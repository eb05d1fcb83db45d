"""The costs of a run's stages, each counted by its kind."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

from synpro_engine.cycle.forecast import synthesis, training
from synpro_engine.cycle.forecast.cost import WEIGHTS, Cost, sampled
from synpro_engine.cycle.forecast.sizes import Sizes
from synpro_engine.cycle.graph import Graph
from synpro_engine.cycle.run_layout import EVALUATE, IMPORT, TOKENIZE, UNIQUE
from synpro_engine.cycle.stages import Stage


def costs(graph: Graph, sizes: Sizes) -> Iterator[Cost]:
    """Of all stages that there may come to be, in their order. sizes: with the recipe as it stands."""
    generated = dict[str, Cost]()
    for stage in graph.stages:
        cost = _cost(graph, stage, replace(sizes, recipe=graph.recipes[stage.name]), generated)
        if "/generate-" in stage.name:
            generated[stage.name] = cost
        yield cost


def _cost(graph: Graph, stage: Stage, sizes: Sizes, generated: Mapping[str, Cost]) -> Cost:
    """What a stage takes. sizes: with the recipe as its arm has it; generated: costs of stages whose texts are read."""
    name, kind = stage.name, stage.name.rpartition("/")[2]
    if name in graph.trainings:
        return training.training(sizes, name, graph.trainings[name].settings.pretrain.max_steps)
    if name == TOKENIZE:
        return Cost(stage=name, tokens=sizes.train_tokens, disk=sizes.stored(sizes.train_tokens or 0.0))
    if name == UNIQUE:
        most = float(sizes.recipe.most_unique_tokens)
        return Cost(stage=name, tokens=most, disk=sizes.stored(most))
    if name == IMPORT:
        generator = sizes.models.generator
        weights, saved = (generator.weights, generator.saved()) if generator else (0.0, 0.0)
        return Cost(stage=name, tokens=0, held={WEIGHTS: weights}, disk=saved)
    if kind == "probe":
        return training.probe(sizes, name)
    if stage.command == "tune":
        return synthesis.tuning(sizes, name, kind.removeprefix("tune-"))
    if kind.startswith("generate-"):
        return synthesis.generation(sizes, name, kind.removeprefix("generate-"))
    if kind == "shards":
        made = next(of.values() for this, of in graph.generated.items() if this.shards == name)
        drawn, stitched = sampled([generated[one] for one in made]), synthesis.stitched(sizes)
        shards = None if drawn is None or stitched is None else drawn + stitched
        return Cost(stage=name, tokens=shards, disk=(shards or 0.0) * sizes.id_bytes)
    if kind == EVALUATE:
        made = [generated[one] for one in stage.parents if one in generated]
        return training.evaluation(sizes, name, graph.measured[name], made)
    return Cost(stage=name, tokens=0)
