"""Models in and out of a run's stages.

Each kind of stage keeps its weights in a place of its own.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch

from synpro_engine.config import UserError, read_manifest
from synpro_engine.config.artifact import MANIFEST
from synpro_engine.cycle.run_layout import CHECKPOINT
from synpro_engine.dist import Topology, broadcast_object, on_main
from synpro_engine.model.build import build_model
from synpro_engine.model.config import ModelConfig
from synpro_engine.model.model import Model
from synpro_engine.model.state import iter_by_name
from synpro_engine.rl.trainer import POLICY
from synpro_engine.train.checkpoint import (
    CHECKPOINTS,
    KIND,
    checkpoint_model_config,
    complete_checkpoints,
    load_checkpoint,
)


def stage_checkpoint(stage: Path, topology: Topology) -> Path:
    """The weights that a finished stage ended with, or `stage` itself where it is a checkpoint, as rank 0 finds them.

    Collective. UserError when there are none.
    """
    return on_main(topology, lambda: _checkpoint_of(stage))


def _checkpoint_of(stage: Path) -> Path:
    if not stage.is_dir():
        raise UserError(f"{stage}: no such directory")
    if (stage / MANIFEST).is_file() and read_manifest(stage).kind == KIND:
        return stage
    for name in (POLICY, CHECKPOINT):
        if (stage / name).is_dir():
            return stage / name
    saved = complete_checkpoints(stage / CHECKPOINTS)
    if not saved:
        raise UserError(f"{stage}: this stage is not finished, or holds no weights")
    return saved[-1]


def load_model(stage: Path, topology: Topology, dtype: torch.dtype, *, like: ModelConfig | None = None) -> Model:
    """The model that a finished stage ended with, frozen. Collective.

    like: the shape it must have; UserError, which names the difference, when it has another.
    """
    path = stage_checkpoint(stage, topology)
    shape = like or on_main(topology, lambda: checkpoint_model_config(path))
    model = build_model(shape, topology, dtype=dtype, seed=None)
    load_checkpoint(path, model)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    return model


def weights_hash(model: Model) -> str:
    """Hex SHA-256 of the full weights: the same in every layout and for every way they were saved. Collective.

    Rank 0 makes it while the tensors pass; no rank holds more than a layer of them.
    """
    digest = hashlib.sha256()
    for name, tensor in iter_by_name(model):
        if model.topology.is_main:
            digest.update(name.encode())
            digest.update(tensor.cpu().contiguous().view(torch.uint8).numpy().data)
    return broadcast_object(digest.hexdigest(), model.topology)
