"""Several layouts in one launch of processes: what costs time is starting them, not training."""

import contextlib
import os
import socket
from collections.abc import Iterator

from synpro_engine.dist import ParallelConfig, Topology, launched


def free_ports(count: int) -> list[int]:
    """Ports for so many jobs, to be handed to every rank."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for listener in sockets:
            listener.bind(("127.0.0.1", 0))
        return [listener.getsockname()[1] for listener in sockets]


@contextlib.contextmanager
def job(parallel: ParallelConfig, port: int) -> Iterator[Topology]:
    """A job of these processes on a port of its own: a rank that is early must not find the last job's store."""
    os.environ["MASTER_PORT"] = str(port)
    with launched(parallel) as topology:
        yield topology
