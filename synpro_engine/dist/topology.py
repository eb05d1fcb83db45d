"""Where this process stands: explicit groups and ranks instead of globals.

Megatron keeps its own globals (`parallel_state`); they are set here once, from the same sizes, and everything
else is handed a `Topology`.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from pydantic import Field

from synpro_engine.backend import platform
from synpro_engine.config import Config, UserError
from synpro_engine.dist.environment import has_rendezvous, read_environment


class ParallelConfig(Config):
    """How the ranks divide the model; data parallelism takes what is left."""

    tp: int = Field(default=1, ge=1)
    """Tensor-parallel size: ranks that share each matrix."""
    pp: int = Field(default=1, ge=1)
    """Pipeline-parallel size: consecutive stages of layers."""
    vpp: int | None = Field(default=None, ge=2)
    """Model chunks per pipeline stage (interleaved schedule); needs pp >= 2."""
    sequence_parallel: bool = False
    """Split activations along the sequence between tensor-parallel ranks; needs tp >= 2."""


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
    def layout(self) -> str:
        """The layout in short, as in `DP2 TP2`."""
        sizes = {"DP": self.dp.size, "TP": self.tp.size, "PP": self.pp.size, "VPP": self.vpp}
        return " ".join(f"{name}{size}" for name, size in sizes.items() if size > 1) or "1 process"


def _check(parallel: ParallelConfig, world: int) -> None:
    if world % (parallel.tp * parallel.pp):
        raise UserError(
            f"`parallel`: tp {parallel.tp} x pp {parallel.pp} does not divide the {world} process(es) of this job"
        )
    if parallel.vpp and parallel.pp < 2:
        raise UserError("`parallel.vpp`: an interleaved schedule needs pp >= 2")
    if parallel.sequence_parallel and parallel.tp < 2:
        raise UserError("`parallel.sequence_parallel`: needs tp >= 2")


def _init_process_group(rank: int, world: int, device: torch.device) -> None:
    backend = platform.communication_backend()
    if backend == "gloo":
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    timeout = timedelta(minutes=30)
    if has_rendezvous():
        bound = device if device.type == "cuda" else None
        dist.init_process_group(backend, rank=rank, world_size=world, timeout=timeout, device_id=bound)
    else:
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1, timeout=timeout)


def launch(parallel: ParallelConfig, seed: int = 0) -> Topology:
    """Join the job that torchrun started (or be a job of one) and divide it as `parallel` says.

    Raises UserError when the sizes do not fit the number of processes or GPUs.
    """
    from megatron.core import parallel_state, tensor_parallel

    here = read_environment()
    _check(parallel, here.world_size)
    device = platform.device(here.local_rank)
    platform.limit_threads(here.local_world_size)
    _init_process_group(here.rank, here.world_size, device)
    parallel_state.initialize_model_parallel(parallel.tp, parallel.pp, parallel.vpp)
    tensor_parallel.model_parallel_cuda_manual_seed(seed, force_reset_rng=True)
    state = parallel_state

    def axis(group: Any) -> Axis:
        return Axis(dist.get_world_size(group), dist.get_rank(group), group)

    return Topology(
        rank=here.rank,
        world_size=here.world_size,
        device=device,
        tp=axis(state.get_tensor_model_parallel_group()),
        pp=axis(state.get_pipeline_model_parallel_group()),
        dp=axis(state.get_data_parallel_group()),
        vpp=parallel.vpp or 1,
        sequence_parallel=parallel.sequence_parallel,
    )


def shutdown() -> None:
    """Leave the job; safe when it was never joined."""
    from megatron.core import parallel_state

    if dist.is_initialized():
        parallel_state.destroy_model_parallel()
        dist.destroy_process_group()


@contextlib.contextmanager
def launched(parallel: ParallelConfig, seed: int = 0) -> Iterator[Topology]:
    """`launch` for the length of a block."""
    topology = launch(parallel, seed)
    try:
        yield topology
    finally:
        shutdown()
