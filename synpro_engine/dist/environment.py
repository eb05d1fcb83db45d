"""What torchrun tells a process about its place. The only reader of these variables; needs no torch."""

from __future__ import annotations

import os
from dataclasses import dataclass

from synpro_engine.config.errors import UserError

_NAMES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")


@dataclass(frozen=True)
class LaunchEnvironment:
    """This process's rank and the number of processes, in the job and on this machine."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_world_size: int = 1


def read_environment() -> LaunchEnvironment:
    """torchrun's variables, or one process without it; UserError when only some are set, or not to numbers."""
    values = [os.environ.get(name) for name in _NAMES]
    if all(value is None for value in values):
        return LaunchEnvironment()
    try:
        return LaunchEnvironment(*(int(value or "") for value in values))
    except ValueError:
        raise UserError(f"environment: {', '.join(_NAMES)} must all be numbers (launch with torchrun)") from None


def is_first_process() -> bool:
    """Whether this process is the one that talks to the user, also when the variables make no sense."""
    return os.environ.get("RANK", "0") == "0"


def has_rendezvous() -> bool:
    """Whether there is an address at which the ranks meet."""
    return "MASTER_ADDR" in os.environ
