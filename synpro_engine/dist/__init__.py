"""The layout of a job: topology, launch, and the few collectives for Python values."""

from synpro_engine.config.errors import RankFailed, Stopped
from synpro_engine.dist.collectives import (
    asked_to_stop,
    barrier,
    broadcast_in,
    broadcast_object,
    gather_objects,
    on_every_rank,
    on_first,
    on_main,
    sum_over,
)
from synpro_engine.dist.hashing import shared_artifact, verify_shared
from synpro_engine.dist.job import SharedTransientError, launched
from synpro_engine.dist.layout import Layout, LayoutConfig, ParallelConfig
from synpro_engine.dist.progress import progress, say
from synpro_engine.dist.topology import Axis, Topology

__all__ = [
    "Axis",
    "Layout",
    "LayoutConfig",
    "ParallelConfig",
    "SharedTransientError",
    "RankFailed",
    "Stopped",
    "Topology",
    "asked_to_stop",
    "barrier",
    "broadcast_in",
    "broadcast_object",
    "gather_objects",
    "launched",
    "on_every_rank",
    "on_first",
    "on_main",
    "progress",
    "say",
    "shared_artifact",
    "sum_over",
    "verify_shared",
]
