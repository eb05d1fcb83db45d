"""The layout of a job: topology, launch, and the few collectives for Python values."""

from synpro_engine.dist.collectives import (
    barrier,
    broadcast_in,
    broadcast_object,
    gather_objects,
    on_every_rank,
    on_main,
    sum_over,
)
from synpro_engine.dist.progress import progress, say
from synpro_engine.dist.topology import Axis, ParallelConfig, Topology, launch, launched, shutdown

__all__ = [
    "Axis",
    "ParallelConfig",
    "Topology",
    "barrier",
    "broadcast_in",
    "broadcast_object",
    "gather_objects",
    "launch",
    "launched",
    "on_every_rank",
    "on_main",
    "progress",
    "say",
    "shutdown",
    "sum_over",
]
