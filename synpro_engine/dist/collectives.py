"""Moving small Python values between ranks: decisions, texts, counts. Tensors go through torch directly."""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from synpro_engine.config import UserError
from synpro_engine.dist.topology import Axis, Topology

T = TypeVar("T")
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def barrier(topology: Topology) -> None:
    """Wait until every rank is here."""
    if topology.world_size > 1:
        dist.barrier()


def broadcast_object(value: T, topology: Topology) -> T:
    """Rank 0's value on every rank."""
    if topology.world_size == 1:
        return value
    box: list[Any] = [value]
    dist.broadcast_object_list(box, src=0, device=topology.device)
    return box[0]


def broadcast_in(axis: Axis, value: T) -> T:
    """The value of the axis' first rank on every rank of the axis."""
    if axis.size == 1:
        return value
    box: list[Any] = [value]
    dist.broadcast_object_list(box, group_src=0, group=axis.group)
    return box[0]


def gather_objects(axis: Axis, value: T) -> list[T]:
    """The values of all ranks of the axis, in rank order, on every one of them."""
    if axis.size == 1:
        return [value]
    values: list[Any] = [None] * axis.size
    dist.all_gather_object(values, value, group=axis.group)
    return values


def sum_over(axis: Axis, values: torch.Tensor) -> torch.Tensor:
    """Sum a tensor over the axis, in place; returns it."""
    if axis.size > 1:
        dist.all_reduce(values, group=axis.group)
    return values


def on_main(topology: Topology, work: Callable[[], T]) -> T:
    """Do `work` on rank 0 alone and give its result to all.

    A UserError there, or a file system that refuses (OSError, told in one line), is raised on every rank as a
    UserError: ranks that were not told would wait in their next collective for ever.
    """
    result: T | None = None
    fault: str | None = None
    cause: Exception | None = None
    if topology.is_main:
        try:
            result = work()
        except (UserError, OSError) as error:
            fault, cause = _told(error), error
    result, fault = broadcast_object((result, fault), topology)
    if fault is not None:
        raise UserError(fault) from cause
    return result  # pyright: ignore[reportReturnType]


def on_every_rank(topology: Topology, work: Callable[[], T]) -> list[T]:
    """Do `work` on every rank; the results in rank order, on every one of them.

    A UserError or OSError of any rank is raised on all of them, as by `on_main`.
    """
    result: T | None = None
    fault: str | None = None
    cause: Exception | None = None
    try:
        result = work()
    except (UserError, OSError) as error:
        fault, cause = _told(error), error
    found: list[Any] = [(result, fault)]
    if topology.world_size > 1:
        found = [None] * topology.world_size
        dist.all_gather_object(found, (result, fault))
    for _, told in found:
        if told is not None:
            raise UserError(told) from cause
    return [done for done, _ in found]


def _told(error: UserError | OSError) -> str:
    if isinstance(error, UserError):
        return str(error)
    files = " -> ".join(str(name) for name in (error.filename, error.filename2) if name is not None)
    told = ": ".join(part for part in (files, error.strerror or str(error) or type(error).__name__) if part)
    return told + ("; what was written before stays readable" if error.errno in _NO_ROOM else "")
