"""Which weights a finished stage ended with. Whatever kind of stage it was, here alone is known where they lie."""

from __future__ import annotations

from pathlib import Path

from synpro_engine.config import UserError, read_manifest
from synpro_engine.config.artifact import MANIFEST
from synpro_engine.cycle.run_layout import CHECKPOINT
from synpro_engine.rl.trainer import POLICY
from synpro_engine.train.checkpoint import KIND
from synpro_engine.train.checkpoint_directory import CHECKPOINTS, complete_checkpoints


def checkpoint_of(stage: Path) -> Path:
    """The checkpoint in a finished stage, or `stage` itself where it is one. UserError where there is none."""
    if not stage.is_dir():
        raise UserError(f"{stage}: no such directory")
    if (stage / MANIFEST).is_file() and read_manifest(stage).kind == KIND:
        return stage
    # What the stage ended with goes before what it kept to resume from.
    for name in (POLICY, CHECKPOINT):
        if (stage / name).is_dir():
            return stage / name
    saved = complete_checkpoints(stage / CHECKPOINTS)
    if not saved:
        raise UserError(f"{stage}: this stage is not finished, or holds no weights")
    return saved[-1]
