"""What tracing asks of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from synpro_engine.cycle.recipe import Recipe
from synpro_engine.cycle.run_layout import Round
from synpro_engine.cycle.steps.training import Training
from synpro_engine.dist import Topology


class TracedRun(Protocol):
    """A run, as `Cycle` is one: its place, and which stages made what."""

    recipe: Recipe
    directory: Path
    topology: Topology

    @property
    def rounds(self) -> dict[Round, dict[str, str]]:
        """All rounds that are known of, of every arm; by operation, the stages that generate in them."""
        ...

    @property
    def training_stages(self) -> tuple[str, ...]:
        """Names of the stages that train the pretrained model, in their order."""
        ...

    def training(self, stage: str) -> Training:
        """What one of them is made from."""
        ...

    def shards_of(self, this: Round) -> str:
        """The stage with a round's texts as tokens."""
        ...

    def round_of(self, stage: str, source: str) -> Round | None:
        """The round whose text a training stage reads under the name of a source; None where it is none's."""
        ...
