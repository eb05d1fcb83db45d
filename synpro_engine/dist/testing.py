"""Run a function on several real ranks over gloo (or NCCL) on this machine: for tests and benchmarks."""

from __future__ import annotations

import contextlib
import itertools
import os
import queue
import random
import socket
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import torch.multiprocessing as mp

from synpro_engine.dist.topology import ParallelConfig, Topology, launched


def free_ports(count: int) -> list[int]:
    """Ports on the loopback address that nobody listens on now, to be handed to every rank.

    Drawn from below the kernel's ephemeral range: a port from within it may be taken by an outgoing connection
    (gloo makes many) before the ranks meet on it.
    """
    candidates = random.SystemRandom().sample(range(15_000, 32_000), 20 * count)
    return list(itertools.islice(filter(_is_free, candidates), count))


def _is_free(port: int) -> bool:
    with socket.socket() as listener, contextlib.suppress(OSError):
        listener.bind(("127.0.0.1", port))
        return True
    return False


@contextlib.contextmanager
def job(parallel: ParallelConfig, port: int) -> Iterator[Topology]:
    """One of several jobs in a launch of ranks, each on a port of its own.

    A rank that is early would otherwise find the store of the job before. Without ranks (one process) any port does.
    """
    os.environ["MASTER_PORT"] = str(port)
    with launched(parallel) as topology:
        yield topology


def _rank_main(
    fn: Callable[..., Any], rank: int, world_size: int, port: int, results: Any, kwargs: dict[str, Any]
) -> None:
    os.environ.update(
        RANK=str(rank),
        WORLD_SIZE=str(world_size),
        LOCAL_RANK=str(rank),
        LOCAL_WORLD_SIZE=str(world_size),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
        OMP_NUM_THREADS="1",
    )
    import torch

    torch.set_num_threads(1)
    try:
        results.put((rank, fn(**kwargs), None))
    except BaseException:
        results.put((rank, None, traceback.format_exc()))
        raise


def run_ranks(fn: Callable[..., Any], world_size: int, *, timeout_s: float = 300.0, **kwargs: Any) -> list[Any]:
    """Call `fn(**kwargs)` in `world_size` fresh processes that see torchrun's variables.

    Returns each rank's result, by rank (results must be picklable: numbers, lists, CPU arrays). Raises
    RuntimeError with the first failing rank's traceback, and ends the other ranks; also after `timeout_s`.
    `fn` must be importable (top level of its module) and itself calls `launch` or `init_process_group`.
    """
    context = mp.get_context("spawn")
    results = context.Queue()
    [port] = free_ports(1)
    processes = [
        context.Process(target=_rank_main, args=(fn, rank, world_size, port, results, kwargs), daemon=False)
        for rank in range(world_size)
    ]
    for process in processes:
        process.start()
    try:
        return _collect(processes, results, timeout_s)
    finally:
        for process in processes:
            process.kill()  # SIGTERM would be a wish to stop
            process.join()


def _collect(processes: list[Any], results: Any, timeout_s: float) -> list[Any]:
    import time

    found: dict[int, Any] = {}
    end = time.monotonic() + timeout_s
    while len(found) < len(processes):
        try:
            rank, value, fault = results.get(timeout=1.0)
        except queue.Empty:
            dead = [r for r, p in enumerate(processes) if r not in found and p.exitcode not in (None, 0)]
            if dead and results.empty():
                code = processes[dead[0]].exitcode
                raise RuntimeError(f"rank {dead[0]} died with exit code {code}") from None
            if time.monotonic() > end:
                raise RuntimeError(f"ranks did not finish within {timeout_s:.0f} s") from None
            continue
        if fault is not None:
            raise RuntimeError(f"rank {rank} failed:\n{fault}")
        found[rank] = value
    return [found[rank] for rank in range(len(processes))]
