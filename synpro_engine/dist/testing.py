"""Run a function on several real ranks over gloo on this machine, on its CPU: for tests and benchmarks.

Ranks are fresh processes, forked from a server that has imported what takes seconds and has done nothing else.
What runs over NCCL is launched (`synpro launch`).
"""

from __future__ import annotations

import contextlib
import os
import queue
import random
import socket
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import torch.multiprocessing as mp

from synpro_engine.config.errors import EXIT_STOPPED, RankFailed, Stopped
from synpro_engine.dist.job import launched
from synpro_engine.dist.layout import ParallelConfig
from synpro_engine.dist.topology import Topology

_SLOW_IMPORTS = (
    "torch",
    "synpro_engine",
    "megatron.core.distributed",
    "megatron.core.optimizer",
    "megatron.core.models.gpt",
    "synpro_engine.cycle",  # the engine, which imports nothing that starts a thread
    "synpro_engine.cli.main",
)
_VISIBLE = "CUDA_VISIBLE_DEVICES"


def free_ports(count: int) -> list[int]:
    """Ports on the loopback address that nobody listens on now, to be handed to every rank.

    Drawn from below the kernel's ephemeral range: a port from within it may be taken by an outgoing connection
    (gloo makes many) before the ranks meet on it.
    """
    ports: list[int] = []
    for port in random.SystemRandom().sample(range(15_000, 32_000), 20 * count):
        if len(ports) == count:
            break
        with socket.socket() as listener, contextlib.suppress(OSError):
            listener.bind(("127.0.0.1", port))
            ports.append(port)
    return ports


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
        # Tests start several ranks on few cores: their threads would spin against each
        # other, and sums stay in one order.
        OMP_NUM_THREADS="1",
    )
    import torch

    torch.set_num_threads(1)
    try:
        value = fn(**kwargs)
        if results is not None:
            results.put((rank, value, None))
    except BaseException:
        if results is not None:
            results.put((rank, None, traceback.format_exc()))
        raise


def _start_server() -> None:
    """Start what ranks are forked from, where it does not run, with no GPU in its sight or theirs.

    Megatron's import asks whether there is one, after which torch lets no fork of that process use it. There may also
    be fewer than ranks.
    """
    seen = os.environ.get(_VISIBLE)
    os.environ[_VISIBLE] = ""
    try:
        forkserver.ensure_running()
    finally:
        if seen is None:
            del os.environ[_VISIBLE]
        else:
            os.environ[_VISIBLE] = seen


def _processes(target: Callable[..., None], fn: Callable[..., Any], world_size: int, *rest: Any) -> list[Any]:
    """Started processes of all ranks, that call `target(fn, rank, world_size, port, *rest)`."""
    # Forked from a server without threads: a fork of a process in which torch has started
    # threads may hang in their locks.
    context = mp.get_context("forkserver")
    context.set_forkserver_preload(list(_SLOW_IMPORTS))
    _start_server()
    # Found before the ranks start, and told to all of them; nobody holds it in between.
    [port] = free_ports(1)
    processes = [
        context.Process(target=target, args=(fn, rank, world_size, port, *rest), daemon=False)
        for rank in range(world_size)
    ]
    for process in processes:
        process.start()
    return processes


@dataclass(frozen=True)
class RankEnd:
    """How one rank's process ended: its exit code (minus the signal's number where one killed it) and its stderr."""

    code: int
    stderr: str


def _program_main(
    fn: Callable[..., Any], rank: int, world_size: int, port: int, log: Path, kwargs: dict[str, Any]
) -> None:
    """The ends that the command line has, with stderr in a file."""
    with log.with_name(f"{log.name}-{rank}").open("wb") as file:
        # The descriptor itself, so that what C++ code and an interpreter that dies write is caught too.
        os.dup2(file.fileno(), 2)
    try:
        _rank_main(fn, rank, world_size, port, None, kwargs)
    except RankFailed as failed:
        sys.stderr.flush()
        # As the command line does: ordinary exit would run destructors of groups that wait for dead ranks.
        os._exit(int(failed.code or 0))
    except Stopped as stopped:
        print(f"stopped: {stopped}", file=sys.stderr)
        sys.exit(EXIT_STOPPED)


@contextlib.contextmanager
def programs(fn: Callable[..., Any], world_size: int, log: Path, **kwargs: Any) -> Iterator[list[Any]]:
    """Processes of ranks that call `fn(**kwargs)` and end as the command line does; `ends` says how."""
    processes = _processes(_program_main, fn, world_size, log, kwargs)
    try:
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.join()


def ends(processes: list[Any], log: Path, *, timeout_s: float = 300.0) -> list[RankEnd]:
    """Wait for every rank's end; RuntimeError when one has not ended in that time."""
    end = time.monotonic() + timeout_s
    for rank, process in enumerate(processes):
        process.join(max(0.0, end - time.monotonic()))
        if process.exitcode is None:
            raise RuntimeError(f"rank {rank} did not end within {timeout_s:.0f} s")
    texts = [log.with_name(f"{log.name}-{rank}").read_text() for rank in range(len(processes))]
    return [RankEnd(process.exitcode, text) for process, text in zip(processes, texts, strict=True)]


def run_ranks(fn: Callable[..., Any], world_size: int, *, timeout_s: float = 300.0, **kwargs: Any) -> list[Any]:
    """Call `fn(**kwargs)` in `world_size` fresh processes that see torchrun's variables.

    Returns each rank's result, by rank (results must be picklable: numbers, lists, CPU arrays). Raises
    RuntimeError with the first failing rank's traceback, and ends the other ranks; also after `timeout_s`.
    `fn` must be importable (top level of its module) and itself calls `launch` or `init_process_group`.
    """
    results = mp.get_context("forkserver").Queue()
    processes = _processes(_rank_main, fn, world_size, results, kwargs)
    try:
        return _collect(processes, results, timeout_s)
    finally:
        for process in processes:
            process.kill()  # SIGTERM would be a wish to stop
            process.join()


def _collect(processes: list[Any], results: Any, timeout_s: float) -> list[Any]:
    values: dict[int, Any] = {}
    end = time.monotonic() + timeout_s
    while len(values) < len(processes):
        try:
            rank, value, fault = results.get(timeout=1.0)
        except queue.Empty:
            dead = [r for r, p in enumerate(processes) if r not in values and p.exitcode not in (None, 0)]
            # A failing rank's traceback may still be on the way: it is put, and the process ends at once.
            if dead and results.empty():
                code = processes[dead[0]].exitcode
                raise RuntimeError(f"rank {dead[0]} died with exit code {code}") from None
            if time.monotonic() > end:
                raise RuntimeError(f"ranks did not finish within {timeout_s:.0f} s") from None
            continue
        if fault is not None:
            raise RuntimeError(f"rank {rank} failed:\n{fault}")
        values[rank] = value
    return [values[rank] for rank in range(len(processes))]
