"""Where this process stands: explicit groups and ranks instead of globals.

Megatron keeps its own globals, with room for one layout at a time: `Topology.divided` puts another one in their place.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.distributed as dist

from synpro_engine.dist.groups import Groups
from synpro_engine.dist.layout import Layout
from synpro_engine.dist.watch import Watch


@dataclass(frozen=True)
class Axis:
    """One dimension of the layout as this rank sees it."""

    size: int
    rank: int
    group: dist.ProcessGroup


def _axis(group: dist.ProcessGroup) -> Axis:
    return Axis(dist.get_world_size(group), dist.get_rank(group), group)


@dataclass(frozen=True)
class Topology:
    """This rank's place in a layout of the job. `vpp` is 1 without an interleaved schedule."""

    rank: int
    world_size: int
    device: torch.device
    tp: Axis
    pp: Axis
    dp: Axis
    cp: Axis
    replicas: Axis
    """Data- and context-parallel ranks together: all that hold the weights which this one holds."""
    vpp: int
    sequence_parallel: bool
    watch: Watch
    groups: Groups = field(repr=False)
    key: str = "parallel"
    """The section of the settings that asks for this layout."""

    @classmethod
    def of(cls, layout: Layout, rank: int, device: torch.device, watch: Watch, groups: Groups) -> Topology:
        """This rank's place in `layout`, which Megatron goes by from now on. Collective where it is a new one."""
        tp, pp, dp, cp, replicas = map(_axis, groups.use(layout))
        return cls(
            rank=rank,
            world_size=layout.replicas * layout.tp * layout.pp,
            device=device,
            tp=tp,
            pp=pp,
            dp=dp,
            cp=cp,
            replicas=replicas,
            vpp=layout.vpp,
            sequence_parallel=layout.sequence_parallel,
            watch=watch,
            groups=groups,
            key=layout.key,
        )

    def divided(self, layout: Layout) -> Topology:
        """This rank's place in another layout of the same job, for the models that are built from now on.

        Those of the layout before must not run any more, for Megatron's globals are the new one's; what goes through
        groups handed out before still does. Collective where the job was not divided so before.
        """
        return Topology.of(layout, self.rank, self.device, self.watch, self.groups)

    def with_whole_sequences(self) -> Topology:
        """The same ranks for models that are only read; see `Layout`. Collective where the job was not divided so."""
        return self.divided(self.layout.with_whole_sequences())

    @property
    def in_force(self) -> bool:
        """Whether Megatron goes by this layout now."""
        return self.groups.in_force == self.layout

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
        """The layout, which all ranks share."""
        return Layout(
            self.dp.size, self.tp.size, self.pp.size, self.vpp, self.sequence_parallel, self.key, self.cp.size
        )
