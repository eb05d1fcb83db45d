"""Several layouts in one launch of processes: what costs time is starting them, not training."""

import contextlib
import os
import random
import socket
from collections.abc import Iterator

from synpro_engine.dist import ParallelConfig, Topology, launched


def free_ports(count: int) -> list[int]:
    """Ports for so many jobs, to be handed to every rank.

    They lie below the range from which the kernel serves outgoing connections (gloo makes many), so that none is taken
    before its job begins.
    """
    candidates = random.Random().sample(range(15_000, 32_000), 20 * count)
    return [port for port in candidates if _is_free(port)][:count]


def _is_free(port: int) -> bool:
    with socket.socket() as listener, contextlib.suppress(OSError):
        listener.bind(("127.0.0.1", port))
        return True
    return False


@contextlib.contextmanager
def job(parallel: ParallelConfig, port: int) -> Iterator[Topology]:
    """A job of these processes on a port of its own: a rank that is early must not find the last job's store."""
    os.environ["MASTER_PORT"] = str(port)
    with launched(parallel) as topology:
        yield topology
