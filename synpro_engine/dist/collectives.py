"""Moving small Python values between ranks: decisions, texts, counts. Tensors go through torch directly."""

from __future__ import annotations

import errno
import json
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from synpro_engine.config import UserError, json_text
from synpro_engine.config.errors import Stopped, TransientError
from synpro_engine.dist.job import SharedError, SharedTransientError
from synpro_engine.dist.progress import elapsed
from synpro_engine.dist.topology import Axis, Topology

T = TypeVar("T")
_ENDS: dict[str, type[Exception]] = {"fault": SharedError, "transient": SharedTransientError, "stop": Stopped}
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def barrier(topology: Topology) -> None:
    """Wait until every rank is here, as long as those that are not yet are alive.

    A collective would end the job after `parallel.timeout_minutes`; ranks whose shares of work were dealt beforehand
    may well be apart for longer.
    """
    # Through the store, where waiting costs a look now and then and ends when a rank that is waited for is dead.
    topology.watch.meet()


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


def from_main(value: T, topology: Topology) -> T:
    """Rank 0's plain JSON data (no NaN) on every rank; the others wait outside collectives, however long it takes."""
    if topology.world_size == 1:
        return value
    watch = topology.watch
    # Drawn on every rank, rank 0 too, or the counts would part and the next wait be for a key that nobody sets.
    key = watch.next_key("main")
    if topology.is_main:
        watch.put(key, json_text(value))
        return value
    # JSON and no pickle: what comes through a store that listens on a port is data, and must not be code.
    value = json.loads(watch.wait(key, 0))
    watch.forget(key)
    return value


def asked_to_stop(topology: Topology) -> bool:
    """Whether the job was asked to stop, as rank 0 knows: the same answer on every rank. Collective."""
    # A signal reaches ranks at different steps: were each to go by its own, some would stop
    # while others wait in a collective.
    return from_main(topology.watch.wish.signal is not None, topology)


def on_main(topology: Topology, work: Callable[[], T], *, label: str | None = None) -> T:
    """Do `work` on rank 0 alone and give its result to all, who wait outside collectives, however long it takes.

    label: for work that may be long and keeps nothing on the way: its time is shown, and a wish to stop breaks it off
    (`Stopped` on every rank). A UserError there, or a file system that refuses (OSError, told in one line), is raised
    on every rank as a UserError, the latter as a SharedTransientError; any other fault ends the job.
    """

    def task() -> T:
        if label is None:
            return work()
        # Rank 0's main thread is the only one at work, so a signal handler may raise here without
        # leaving a collective half done.
        with topology.watch.wish.breakable(), elapsed(label):
            return work()

    result, fault = _attempt(task) if topology.is_main else (None, None)
    # The fault first, in its own message: were the result awaited in a collective, a
    # fault would leave the others there.
    told, valued = from_main((_told(fault), result is not None), topology)
    # Before the result is sent, for all ranks raise here or none does.
    _raise_shared([told], fault)
    return broadcast_object(result, topology) if valued else result  # pyright: ignore[reportReturnType]


def on_first(axis: Axis, topology: Topology, work: Callable[[], T]) -> T:
    """Do `work` on the axis' first rank alone and give its plain JSON result to the axis; NaN becomes None.

    The others wait outside collectives, however long it takes. Faults are raised on all of the axis as by `on_main`.
    """
    if axis.size == 1:
        return work()
    root, watch = dist.get_global_rank(axis.group, 0), topology.watch
    # Counted by the axis and not by the job: other groups may do this more often, or never.
    key = watch.next_key_of(f"first/{root}")
    if axis.rank:
        result, told = json.loads(watch.wait(key, root))
        watch.forget(key, axis.size - 1)
        _raise_shared([told], None)
        return result
    result, fault = _attempt(work)
    watch.put(key, json_text([result, _told(fault)]))
    _raise_shared([_told(fault)], fault)
    return result  # pyright: ignore[reportReturnType]


def on_every_rank(topology: Topology, work: Callable[[], T]) -> list[T]:
    """Do `work` on every rank, one share each; the results in rank order, on every one of them.

    Ranks that are ready wait outside collectives. A UserError, OSError or Stopped of any rank is raised on all of them,
    as by `on_main`.
    """
    result, fault = _attempt(work)
    # Not in the `all_gather` below, which would give up after `parallel.timeout_minutes` on a rank that is merely slow.
    barrier(topology)
    ends: list[Any] = [(result, _told(fault))]
    if topology.world_size > 1:
        end_here, ends = ends[0], [None] * topology.world_size
        dist.all_gather_object(ends, end_here)
    _raise_shared([told for _, told in ends], fault)
    return [value for value, _ in ends]


def _attempt(work: Callable[[], T]) -> tuple[T | None, Exception | None]:
    """What `work` returns, or what it raised of the faults that all ranks are to raise."""
    try:
        return work(), None
    # Only what ranks can raise together in order. A bug must not be smoothed over: it
    # ends the job through `RankFailed`.
    except (UserError, OSError, Stopped) as fault:
        return None, fault


def _raise_shared(told: Sequence[tuple[str, str] | None], fault_here: Exception | None) -> None:
    """Raise the first of the faults that ranks told each other (`_told`), before any stop; `fault_here`: this rank's.

    All ranks sort the same list, so all raise the same exception.
    """
    for message, end in sorted((each for each in told if each is not None), key=lambda each: each[1] == "stop"):
        raise _ENDS[end](message) from fault_here


def _told(fault: Exception | None) -> tuple[str, str] | None:
    """A fault as other ranks are told of it: its message, and which of `_ENDS` it is."""
    if fault is None:
        return None
    if not isinstance(fault, OSError):
        kinds = {"stop": Stopped, "transient": TransientError}
        return str(fault), next((end for end, kind in kinds.items() if isinstance(fault, kind)), "fault")
    files = " -> ".join(str(name) for name in (fault.filename, fault.filename2) if name is not None)
    message = ": ".join(part for part in (files, fault.strerror or str(fault) or type(fault).__name__) if part)
    # Artifacts appear by a rename and records are appended, so a full disk damages neither.
    return message + ("; what was written before stays readable" if fault.errno in _NO_ROOM else ""), "transient"
