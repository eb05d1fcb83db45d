"""The stage that says what helping the reference means for theta: a direction in weight space, or a probe theta'.

Knows which data it is made from and where it is kept; the mathematics are in `influence`.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import torch

from synpro_engine.config import atomic_write_text, json_text, read_manifest
from synpro_engine.config.artifact import MANIFEST
from synpro_engine.cycle.corpus import open_split, open_tokenizer
from synpro_engine.cycle.pretraining import ORGANIC, loader_of, new_model
from synpro_engine.cycle.recipe import Recipe
from synpro_engine.cycle.weights import CHECKPOINT, load_model, stage_checkpoint
from synpro_engine.data import TokenLoader, eval_windows
from synpro_engine.dist import Topology, on_main
from synpro_engine.influence import (
    Direction,
    load_direction,
    next_step_direction,
    probe_direction,
    run_probe,
    save_direction,
)
from synpro_engine.influence.directions import direction_files
from synpro_engine.model.model import Model
from synpro_engine.train.checkpoint import load_checkpoint, save_checkpoint
from synpro_engine.train.engine import Engine
from synpro_engine.train.run import split_batch

DIRECTION = "direction"


def probe_stage(into: Path, recipe: Recipe, tokens: Path, theta: Path, topology: Topology) -> None:
    """Make the probe of theta on the reference split, as `recipe.probe` says. Collective."""
    make = _next_step if recipe.probe.kind == "next_step" else _walk
    make(into, recipe, tokens, stage_checkpoint(theta, topology), topology)


def _next_step(into: Path, recipe: Recipe, tokens: Path, theta: Path, topology: Topology) -> None:
    config, words = recipe.probe, open_tokenizer(tokens, topology)
    training, model = recipe.pretrain, new_model(recipe, topology, seed=None)
    engine = Engine(model, training.optimizer, schedule=training.schedule)
    load_checkpoint(theta, model, engine)
    text = {name: open_split(tokens, name, words) for name in ("train", "reference")}
    loader = loader_of(recipe, {ORGANIC: text["train"]}, {ORGANIC: 1.0}, training.global_batch, topology)
    upcoming = [
        split_batch(loader.next_batch(), config.micro_batch, equal=topology.pp.size > 1)
        for _ in range(config.sampled_steps)
    ]
    reference = eval_windows(
        text["reference"],
        recipe.model.seq_len,
        batch_size=config.micro_batch,
        max_tokens=config.reference_tokens,
        dp_rank=topology.dp.rank,
        dp_size=topology.dp.size,
    )
    v = next_step_direction(engine, list(reference), upcoming, show_progress=True)
    save_direction(into / DIRECTION, model, v, seed=recipe.seed)


def _walk(into: Path, recipe: Recipe, tokens: Path, theta: Path, topology: Topology) -> None:
    config, model = recipe.probe, new_model(recipe, topology, seed=None)
    reference = _walked(recipe, tokens, "reference", topology)
    if config.control:
        v = probe_direction(theta, model, reference, config, control=_walked(recipe, tokens, "train", topology))
        save_direction(into / DIRECTION, model, v, seed=recipe.seed)
        return
    steps = run_probe(theta, model, reference, config)
    save_checkpoint(into / CHECKPOINT, model, seed=recipe.seed)
    lines = "".join(json_text(asdict(step)) + "\n" for step in steps)
    on_main(topology, lambda: atomic_write_text(into / "steps.jsonl", lines))


def _walked(recipe: Recipe, tokens: Path, split: str, topology: Topology) -> TokenLoader:
    corpus = open_split(tokens, split, open_tokenizer(tokens, topology))
    return loader_of(recipe, {split: corpus}, {split: 1.0}, recipe.probe.global_batch, topology)


def load_probe(path: Path, theta: Model, dtype: torch.dtype) -> Model | Direction:
    """What a `probe` stage made, a checkpoint or a stored direction, to go with `theta`. Collective.

    UserError, which names the difference, where it has another shape.
    """
    # The two are read by other collectives, so rank 0's look at the files tells all ranks which it is.
    stored = on_main(theta.topology, lambda: _direction_in(path))
    if stored is None:
        return load_model(path, theta.topology, dtype, like=theta.config)
    return load_direction(stored, theta)


def is_tangent(path: Path) -> bool:
    """Whether a `probe` stage, a checkpoint or a stored direction is a gradient's direction, which has no length.

    As this rank sees it; not collective.
    """
    stored = _direction_in(path)
    return stored is not None and direction_files.is_tangent(stored)


def _direction_in(path: Path) -> Path | None:
    for place in (path / DIRECTION, path):
        if (place / MANIFEST).is_file() and read_manifest(place).kind == direction_files.KIND:
            return place
    return None
