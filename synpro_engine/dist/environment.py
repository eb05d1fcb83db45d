"""What the launcher tells a process about its place. The only reader of these variables; needs no torch."""

from __future__ import annotations

import ipaddress
import os
import socket
from dataclasses import dataclass

import psutil

from synpro_engine.config.errors import UserError

_NAMES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
_ADDRESS, _PORT = "MASTER_ADDR", "MASTER_PORT"
# Set by srun and mpirun for each process they start; without the variables above these would not know of each other.
_FOREIGN = ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE")
_HOW = "start the job with `synpro launch` or torchrun"


@dataclass(frozen=True)
class LaunchEnvironment:
    """This process's rank and the number of processes, in the job and on this machine."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_world_size: int = 1


@dataclass(frozen=True)
class MeetingPoint:
    """Where the ranks' store listens. `served`: by the launcher, not by rank 0; `attempt` counts its restarts."""

    host: str
    port: int
    served: bool
    attempt: str


def read_environment() -> LaunchEnvironment:
    """torchrun's variables, or one process without it.

    UserError, which names the variable, where only some are set, or to what cannot be, and where another launcher
    started several processes that would not know of each other.
    """
    launched = {name: os.environ[name] for name in _NAMES if name in os.environ}
    if not launched:
        _refuse_strangers()
        return LaunchEnvironment()
    # Half of the variables are the rest of somebody's shell or job; guessing the others
    # would make jobs that never meet.
    missing = [name for name in _NAMES if name not in launched]
    if missing:
        raise UserError(f"environment: {', '.join(launched)} set, but not {', '.join(missing)}; {_HOW}, or unset them")
    rank, world, local_rank, local_world = (_number(name, launched[name], name.endswith("SIZE")) for name in _NAMES)
    _below("RANK", rank, "WORLD_SIZE", world)
    _below("LOCAL_RANK", local_rank, "LOCAL_WORLD_SIZE", local_world)
    _below("LOCAL_WORLD_SIZE", local_world - 1, "WORLD_SIZE", world)
    if world > 1:
        meeting_point()
    return LaunchEnvironment(rank, world, local_rank, local_world)


def _number(name: str, value: str, positive: bool = False) -> int:
    # `int` would also take "+1", "1_0", spaces and digits of other scripts.
    if not (value.isascii() and value.isdigit() and int(value) >= positive):
        wanted = "a number from 1 on" if positive else "a number"
        raise UserError(f"environment: {name} is {value!r}, not {wanted}; {_HOW}")
    return int(value)


def _below(name: str, value: int, limit: str, most: int) -> None:
    if value >= most:
        raise UserError(f"environment: {name}={os.environ[name]} does not fit {limit}={most}; {_HOW}")


def _refuse_strangers() -> None:
    for name in _FOREIGN:
        count = os.environ.get(name, "1")
        if count.isdigit() and int(count) > 1:
            raise UserError(
                f"environment: {name}={count}, but {', '.join(_NAMES)} are not set, so the {count} processes would each"
                " run the whole job; start one process a machine that calls `synpro launch` or torchrun"
            )


def meeting_point() -> MeetingPoint:
    """Where several ranks meet; UserError, which names the variable, when it is not told."""
    for name in (_ADDRESS, _PORT):
        if not os.environ.get(name):
            raise UserError(f"environment: WORLD_SIZE={os.environ.get('WORLD_SIZE')} needs {name}; {_HOW}")
    port = _number(_PORT, os.environ[_PORT], positive=True)
    _below(_PORT, port, "the range of ports,", 65_536)
    # Set by torchrun where its agent holds the store: a rank that tried to serve it too would find the port taken.
    served = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    return MeetingPoint(os.environ[_ADDRESS], port, served, os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))


def gloo_interface(here: LaunchEnvironment) -> str | None:
    """The network interface over which this rank meets the others: loopback where all are on this machine.

    Left alone, gloo takes the address that this machine's name has, and that of many is a loopback address. None where
    no interface is found to have the address from which MASTER_ADDR is reached; then gloo must do what it can.
    """
    host = os.environ.get(_ADDRESS, "")
    try:
        loopback = ipaddress.ip_address(host).is_loopback
    except ValueError:
        loopback = host == "localhost"
    # Only where all ranks are here: to ranks of another machine a loopback address would be their own.
    if loopback or here.world_size == here.local_world_size:
        return "lo"
    try:
        [(family, *_, place), *_] = socket.getaddrinfo(host, int(os.environ[_PORT]), type=socket.SOCK_DGRAM)
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect(place)  # sends nothing; the kernel chooses the way
            address = probe.getsockname()[0]
    except OSError:
        return None
    # gloo wants a name, and the kernel tells an address.
    interfaces = psutil.net_if_addrs().items()
    return next((name for name, addresses in interfaces if address in (one.address for one in addresses)), None)


def is_first_process() -> bool:
    """Whether this process is the one that talks to the user; also each one whose variables make no sense."""
    try:
        return read_environment().rank == 0
    except UserError:
        return True
