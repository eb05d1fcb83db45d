"""Stages run one after the other, as a run of one round does."""

from collections.abc import Sequence
from pathlib import Path

from synpro_engine.cycle.stages import Stage, needed, run_stage
from synpro_engine.dist import Topology


def run_stages(
    directory: Path, stages: Sequence[Stage], topology: Topology, until: str | None = None, *, redo: bool = False
) -> None:
    """Run the stages of command `until`, or of any, and all that they are made from, in order."""
    for stage in needed(stages, until):
        run_stage(directory, stage, topology, redo=redo)
