"""The stage that says what helping the reference means for theta: a direction in weight space, or a probe theta'.

Which data it is made from and where it is kept; the mathematics are in `influence`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path

import torch

from synpro_engine.backend import platform
from synpro_engine.config import atomic_write_text, json_text, read_manifest
from synpro_engine.config.artifact import MANIFEST
from synpro_engine.cycle.run_layout import CHECKPOINT, DIRECTION, DIRECTIONS, WALK_STEPS
from synpro_engine.cycle.settings import ProbeSettings
from synpro_engine.cycle.steps.corpus import open_measured, open_split, open_tokenizer
from synpro_engine.cycle.steps.training import ORGANIC
from synpro_engine.cycle.steps.weights import load_model, stage_checkpoint
from synpro_engine.data import TokenCorpus, TokenLoader, reference_windows
from synpro_engine.dist import Topology, on_main
from synpro_engine.influence import (
    Direction,
    load_direction,
    next_step_directions,
    probe_direction,
    run_probe,
    save_direction,
)
from synpro_engine.influence.directions import direction_files
from synpro_engine.model.build import build_model
from synpro_engine.model.model import Model
from synpro_engine.train.checkpoint import load_checkpoint, save_checkpoint
from synpro_engine.train.engine import Engine


def probe_stage(into: Path, settings: ProbeSettings, tokens: Path, theta: Path, topology: Topology) -> None:
    """Make the probe of theta on the reference split, as `settings.probe` says. Collective."""
    make = _next_step if settings.probe.kind == "next_step" else _walk
    model = build_model(settings.model, topology, dtype=platform.resolve_dtype(settings.dtype), seed=None)
    make(into, settings, tokens, stage_checkpoint(theta, topology), model)


def _loader(
    settings: ProbeSettings,
    corpora: Mapping[str, TokenCorpus],
    weights: Mapping[str, float],
    global_batch: int,
    topology: Topology,
) -> TokenLoader:
    return TokenLoader(
        corpora,
        weights,
        settings.model.seq_len,
        global_batch,
        settings.seed,
        dp_rank=topology.dp.rank,
        dp_size=topology.dp.size,
        mask_repetitions=settings.mask_repetitions,
        separate_documents=settings.separate_documents,
    )


def _next_step(into: Path, settings: ProbeSettings, tokens: Path, theta: Path, model: Model) -> None:
    corpora = open_measured(tokens, settings.references, open_tokenizer(tokens, model.topology))
    save_directions(into, model, next_steps(settings, tokens, corpora, theta, model), seed=settings.seed)


def save_directions(
    into: Path, model: Model, named: Iterable[tuple[str | None, Direction]], *, seed: int | None = None
) -> None:
    """Keep the direction of all references (None) and those of each, where `load_probe` looks for them. Collective."""
    for name, v in named:
        save_direction(into / DIRECTION if name is None else into / DIRECTIONS / name, model, v, seed=seed)


def next_steps(
    settings: ProbeSettings, tokens: Path, corpora: Mapping[str, TokenCorpus], theta: Path, model: Model
) -> Iterator[tuple[str | None, Direction]]:
    """`next_step_directions` of references by name, at the checkpoint `theta`, which is read into `model`.

    tokens: the `tokenize` stage, with the text that training reads next.
    """
    config, topology = settings.probe, model.topology
    engine = Engine(model, settings.optimizer, schedule=settings.schedule)
    # With the optimizer's state: the direction is that of its very next step.
    load_checkpoint(theta, model, engine)
    organic = {ORGANIC: open_split(tokens, "train", open_tokenizer(tokens, topology))}
    loader = _loader(settings, organic, {ORGANIC: 1.0}, settings.global_batch, topology)
    upcoming = [
        loader.next_batch().split(config.micro_batch, equal=topology.pp.size > 1) for _ in range(config.sampled_steps)
    ]
    references = reference_windows(
        corpora,
        settings.references,
        settings.model.seq_len,
        batch_size=config.micro_batch,
        max_tokens=config.reference_tokens,
        dp_rank=topology.dp.rank,
        dp_size=topology.dp.size,
        separate_documents=settings.separate_documents,
    )
    yield from next_step_directions(engine, references, upcoming, weights=settings.references, show_progress=True)


def _walk(into: Path, settings: ProbeSettings, tokens: Path, theta: Path, model: Model) -> None:
    config, optimizer, topology = settings.probe, settings.optimizer, model.topology
    reference = _walked(settings, tokens, settings.references, topology)
    # A difference of two walks is no model's weights, so it is kept as a direction; a walk alone is a checkpoint.
    if config.control:
        control = _walked(settings, tokens, {"train": 1.0}, topology)
        v = probe_direction(theta, model, reference, config, control=control, optimizer=optimizer)
        save_direction(into / DIRECTION, model, v, seed=settings.seed)
        return
    steps = run_probe(theta, model, reference, config, optimizer=optimizer)
    save_checkpoint(into / CHECKPOINT, model, seed=settings.seed)
    lines = "".join(json_text(asdict(step)) + "\n" for step in steps)
    on_main(topology, lambda: atomic_write_text(into / WALK_STEPS, lines))


def _walked(settings: ProbeSettings, tokens: Path, weights: Mapping[str, float], topology: Topology) -> TokenLoader:
    corpora = open_measured(tokens, weights, open_tokenizer(tokens, topology))
    return _loader(settings, corpora, weights, settings.probe.global_batch, topology)


def load_probe(path: Path, theta: Model, dtype: torch.dtype) -> Model | Direction:
    """What a `probe` stage made, a checkpoint or a stored direction, to go with `theta`. Collective.

    UserError, which names the difference, where it has another shape.
    """
    # The two are read by other collectives, so rank 0's look at the files tells all ranks which it is.
    stored = on_main(theta.topology, lambda: _direction_in(path))
    if stored is None:
        return load_model(path, theta.topology, dtype, like=theta.config)
    return load_direction(stored, theta)


def load_reference_directions(path: Path, theta: Model) -> dict[str, Direction]:
    """The direction of each reference alone, by its name, where a `probe` stage made them of several. Collective."""
    names = on_main(theta.topology, lambda: sorted(place.name for place in (path / DIRECTIONS).glob("*")))
    return {name: load_direction(path / DIRECTIONS / name, theta) for name in names}


def probe_hash(path: Path, topology: Topology) -> str:
    """Content hash of the weights that `load_probe` reads in a finished stage. Collective."""
    # Of these alone: the files beside them hold times, which no two runs have in common.
    return on_main(topology, lambda: read_manifest(_direction_in(path) or path / CHECKPOINT).content_hash)


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
