"""Joining the job that torchrun started, dividing it, and leaving it: whole, or because one rank failed."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from datetime import timedelta

import torch
import torch.distributed as dist

from synpro_engine.backend import platform
from synpro_engine.config import UserError, brief
from synpro_engine.config.errors import RankFailed, Stopped, TransientError
from synpro_engine.dist.environment import LaunchEnvironment, gloo_interface, meeting_point, read_environment
from synpro_engine.dist.groups import Groups
from synpro_engine.dist.layout import Layout, LayoutConfig, ParallelConfig
from synpro_engine.dist.topology import Topology
from synpro_engine.dist.watch import Watch


class SharedError(UserError):
    """A UserError that every rank raises, so that the job can end in order."""


class SharedTransientError(SharedError, TransientError):
    """Likewise, where it is some rank's file system or service that refused."""


def _connect(here: LaunchEnvironment, patience: timedelta, *, serve: bool) -> dist.Store:
    """A connection to the job's store; with `serve` rank 0 holds it, unless the launcher does."""
    point = meeting_point()
    is_server = serve and here.rank == 0 and not point.served
    try:
        # Not waiting for workers here: torch's own wait names nobody. `_meet` waits, and says which ranks are missing.
        store = dist.TCPStore(point.host, point.port, None, is_server, patience, wait_for_workers=False)
    except (dist.DistError, RuntimeError) as error:
        what = "cannot be served" if is_server else "nobody answers"
        raise UserError(f"environment: MASTER_ADDR {point.host}, MASTER_PORT {point.port}: {what} ({error})") from None
    # A launcher's store outlives a restart of its ranks: keys of the attempt before must not answer waits of this one.
    return dist.PrefixStore(f"synpro/{point.attempt}", store)


def _meet(store: dist.Store, here: LaunchEnvironment, patience: timedelta) -> None:
    """Wait for every process: what follows waits no longer than a collective may."""
    store.set(f"here/{here.rank}", "")
    try:
        if here.rank == 0:
            store.wait([f"here/{rank}" for rank in range(here.world_size)], patience)
            store.set("all here", "")
        # Longer than rank 0's own wait, so that its list of those that are missing comes before this gives up.
        store.wait(["all here"], 2 * patience)
    except dist.DistStoreError as error:
        missing = [rank for rank in range(here.world_size) if not store.check([f"here/{rank}"])]
        waited = f"within {patience.total_seconds() / 60:g} minutes (`parallel.join_minutes`)"
        raise UserError(
            f"launch: {len(missing)} of {here.world_size} processes did not come {waited}: rank {brief(missing)[1:-1]}"
        ) from error


def _init_process_group(
    store: dist.Store, here: LaunchEnvironment, device: torch.device, parallel: ParallelConfig
) -> None:
    backend = platform.communication_backend()
    if backend == "gloo" and (interface := gloo_interface(here)):
        # The user's own choice counts: only they know of networks that routing does not show.
        os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)
    dist.init_process_group(
        backend,
        store=store,
        rank=here.rank,
        world_size=here.world_size,
        timeout=timedelta(minutes=parallel.timeout_minutes),
        # NCCL then connects at once, so that a broken link is told here and not in the first step.
        device_id=device if device.type == "cuda" else None,
    )


def launch(parallel: ParallelConfig, seed: int = 0, layouts: Mapping[str, LayoutConfig] | None = None) -> Topology:
    """Join the job that torchrun started (or be a job of one) and divide it as `parallel` says.

    layouts: how it will be divided (see `Topology.divided`), by the settings' key.
    Raises UserError when the sizes do not fit the number of processes, and RankFailed when joining fails on some rank.
    """
    here = read_environment()
    # Before anything is waited for: every rank finds the same fault and ends by itself.
    layout = Layout.of(parallel, here.world_size)
    later = [Layout.of(config, here.world_size, key) for key, config in (layouts or {}).items()]
    import megatron.core.parallel_state  # noqa: F401 - takes seconds, so before the ranks meet

    platform.compile_in_process()
    if any(each.tp > 1 for each in (layout, *later)):
        # Before CUDA starts, which reads the variable once.
        platform.start_kernels_in_order()
    alone = here.world_size == 1
    patience = timedelta(minutes=parallel.join_minutes)
    store = dist.HashStore() if alone else _connect(here, patience, serve=True)
    if not alone:
        _meet(store, here, patience)
    # A connection of its own: calls of the process groups block in theirs, and would hold up the signs of life.
    watch = Watch(
        None if alone else _connect(here, patience, serve=False),
        here.rank,
        here.world_size,
        local_rank=here.local_rank,
        silence_s=60 * parallel.silence_minutes,
        hang_s=60 * parallel.hang_minutes,
    )
    with _ending_the_job(watch, alone):
        # Inside, for a rank without its GPU fails alone, and the others are about to wait for it.
        device = platform.device(here.local_rank)
        platform.limit_threads(here.local_world_size)
        _init_process_group(store, here, device, parallel)
        groups = Groups(seed, parallel.timeout_minutes)
        return Topology.of(layout, here.rank, device, watch, groups)


def shutdown(watch: Watch) -> None:
    """Leave the job, which every rank does."""
    from megatron.core import parallel_state

    # gloo frees a collective's tensors in threads of its own, which need Python's lock for it; destroying the groups
    # waits for those threads with the lock held. Waiting here, where the lock is free, lets them end first.
    watch.meet()
    # Before the default group, from which Megatron's are made.
    parallel_state.destroy_model_parallel()
    dist.destroy_process_group()
    watch.leave()


@contextlib.contextmanager
def _ending_the_job(watch: Watch, alone: bool) -> Iterator[None]:
    """Around what one rank may fail in: then the others are told, and the groups, in which they wait, are left alone.

    Leaving those in order would wait for ranks that never come.
    """
    try:
        yield
    except (RankFailed, SharedError, Stopped):
        raise
    except BaseException as error:
        if alone:
            raise
        # A SystemExit: it must pass through every `except Exception` between here and the command line.
        raise RankFailed(watch.fail(error)) from error


@contextlib.contextmanager
def launched(
    parallel: ParallelConfig, seed: int = 0, layouts: Mapping[str, LayoutConfig] | None = None
) -> Iterator[Topology]:
    """`launch` for the length of a block, in which SIGTERM, SIGUSR1 and Ctrl-C are wishes to stop (see `signals`).

    Whatever one rank of several raises in it ends the whole job within seconds: RankFailed, after the user was told
    which rank it was and why. What every rank raises (SharedError, Stopped) passes through.
    """
    topology = launch(parallel, seed, layouts)
    topology.watch.wish.listen()
    broken = False
    try:
        with _ending_the_job(topology.watch, topology.world_size == 1):
            yield topology
    except RankFailed:
        broken = True
        raise
    finally:
        if not broken:
            with _ending_the_job(topology.watch, topology.world_size == 1):
                shutdown(topology.watch)
