"""Models in and out of a run's stages.

Knows where each kind of stage keeps its weights; knows nothing of how they came about.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch

from synpro_engine.config import UserError, read_manifest
from synpro_engine.config.artifact import MANIFEST
from synpro_engine.dist import Topology
from synpro_engine.model.build import build_model
from synpro_engine.model.config import ModelConfig
from synpro_engine.model.model import Model
from synpro_engine.rl.trainer import POLICY
from synpro_engine.train.checkpoint import KIND, checkpoint_model_config, load_checkpoint, newest_checkpoint
from synpro_engine.train.run import CHECKPOINTS

CHECKPOINT = "checkpoint"


def stage_checkpoint(stage: Path, topology: Topology) -> Path:
    """The weights that a finished stage ended with, or `stage` itself where it is a checkpoint. Collective.

    UserError when there are none.
    """
    if not stage.is_dir():
        raise UserError(f"{stage}: no such directory")
    if (stage / MANIFEST).is_file() and read_manifest(stage).kind == KIND:
        return stage
    for name in (POLICY, CHECKPOINT):
        if (stage / name).is_dir():
            return stage / name
    newest = newest_checkpoint(stage / CHECKPOINTS, topology)
    if newest is None:
        raise UserError(f"{stage}: this stage is not finished, or holds no weights")
    return newest


def load_model(stage: Path, topology: Topology, dtype: torch.dtype, *, like: ModelConfig | None = None) -> Model:
    """The model that a finished stage ended with, frozen. Collective.

    like: the shape it must have; UserError, which names the difference, when it has another.
    """
    path = stage_checkpoint(stage, topology)
    model = build_model(like or checkpoint_model_config(path), topology, dtype=dtype, seed=None)
    load_checkpoint(path, model)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    return model


def weights_hash(model: Model) -> str:
    """Hex SHA-256 of the full weights: the same in every layout and for every way they were saved. Collective."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.canonical_state().items()):
        digest.update(name.encode())
        digest.update(tensor.contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()
