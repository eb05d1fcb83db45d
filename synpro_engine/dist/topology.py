"""Where this process stands: explicit groups and ranks instead of globals."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist

from synpro_engine.dist.layout import Layout
from synpro_engine.dist.watch import Watch


@dataclass(frozen=True)
class Axis:
    """One dimension of the layout as this rank sees it."""

    size: int
    rank: int
    group: dist.ProcessGroup


@dataclass(frozen=True)
class Topology:
    """This rank's place. `vpp` is 1 without an interleaved schedule."""

    rank: int
    world_size: int
    device: torch.device
    tp: Axis
    pp: Axis
    dp: Axis
    vpp: int
    sequence_parallel: bool
    watch: Watch

    @property
    def is_main(self) -> bool:
        """Rank 0: the one that prints and writes what all ranks know."""
        return self.rank == 0

    @property
    def is_first_stage(self) -> bool:
        """Whether this rank holds the embedding's stage."""
        return self.pp.rank == 0

    @property
    def is_last_stage(self) -> bool:
        """Whether this rank holds the output layer's stage."""
        return self.pp.rank == self.pp.size - 1

    @property
    def layout(self) -> Layout:
        """The job's layout, which all ranks share."""
        return Layout(self.dp.size, self.tp.size, self.pp.size, self.vpp, self.sequence_parallel)
