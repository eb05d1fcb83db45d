"""Named spans of work: how a trace shows the parts of a step, and where its time goes.

    with span("data"):
        batch = loader.next_batch()

While nobody listens a span costs a look at an empty list. Megatron marks its own parts through `megatron_timers`.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from itertools import pairwise
from typing import Any, Protocol

import torch

DATA, FORWARD, BACKWARD, PIPELINE = "data", "forward", "backward", "pipeline"
GRAD_REDUCE, OPTIMIZER, PARAM_GATHER = "grad_reduce", "optimizer", "param_gather"
EVALUATE, CHECKPOINT, LOG, OTHER = "evaluate", "checkpoint", "log", "other"
"""Names of training's spans. `pipeline`: sending to, receiving from and waiting for other stages; `other`: no span."""
ROLLOUT, SCORE, REFERENCE, TRAIN = "rollout", "score", "reference", "train"
"""A step of tuning's: within `train` is `reference`, what other policies and critics say, and training's."""


class Listener(Protocol):
    """Hears each span of its thread begin and end; spans nest."""

    def open(self, name: str) -> None:
        """A span begins."""
        ...

    def close(self) -> None:
        """The span that began last ends."""
        ...


class _Heard(threading.local):
    """By thread, for one that saves in the background would close the spans of the one that trains."""

    def __init__(self) -> None:
        self.by: list[Listener] = []


_heard = _Heard()


@contextlib.contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Tell `listener` of the spans of this thread that begin in the `with` block."""
    _heard.by.append(listener)
    try:
        yield
    finally:
        _heard.by.remove(listener)


@contextlib.contextmanager
def span(name: str) -> Iterator[None]:
    """Mark the work in the `with` block."""
    if not _heard.by:
        yield
        return
    _open(name)
    try:
        yield
    finally:
        _close()


def _open(name: str) -> None:
    for listener in _heard.by:
        listener.open(name)


def _close() -> None:
    for listener in reversed(_heard.by):
        listener.close()


class SpanClock:
    """Seconds by span, each without those within it.

    On CUDA by events on the device's own time line, so that measuring makes no step wait; else by the wall clock.
    """

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._marks: list[tuple[str | None, Any]] = [(None, self._now())]

    def open(self, name: str) -> None:
        """A span begins."""
        self._marks.append((name, self._now()))

    def close(self) -> None:
        """The innermost span ends."""
        self._marks.append((None, self._now()))

    def _now(self) -> Any:
        if not self._cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def seconds(self) -> dict[str, float]:
        """From the clock's making to now, which waits for the device: the sum over all names is the time between."""
        marks = [*self._marks, (None, self._now())]
        if self._cuda:
            torch.cuda.synchronize()
        found: dict[str, float] = {}
        inside: list[str] = []
        for (_, since), (name, until) in pairwise(marks):
            at = inside[-1] if inside else OTHER
            found[at] = found.get(at, 0.0) + (since.elapsed_time(until) / 1e3 if self._cuda else until - since)
            if name is not None:
                inside.append(name)
            elif inside:
                inside.pop()
        return found


# ---- Megatron --------------------------------------------------------------------------------------------------------

_OF_MEGATRON = {
    "forward-compute": FORWARD,
    "backward-compute": BACKWARD,
    "all-grads-sync": GRAD_REDUCE,
    "non-tensor-parallel-grads-all-reduce": GRAD_REDUCE,
    "embedding-grads-all-reduce": GRAD_REDUCE,
    "params-all-gather": PARAM_GATHER,
}
"""Its timers by our names. Those of the optimizer's parts are left to the span around the whole update."""


class _Timer:
    """What Megatron starts and stops. It keeps no state: Megatron nests its timers as spans do."""

    def __init__(self, name: str | None) -> None:
        self._name = name

    def start(self, barrier: bool = False) -> None:
        """A barrier, which Megatron's own timers make here, would change what is measured."""
        if self._name is not None:
            _open(self._name)

    def stop(self, barrier: bool = False) -> None:
        """The part ends."""
        if self._name is not None:
            _close()


_NOTHING = _Timer(None)
_TIMERS = {name: _Timer(ours) for name, ours in _OF_MEGATRON.items()}
_PIPELINE = _Timer(PIPELINE)


def megatron_timers(name: str, log_level: int = 0) -> _Timer:
    """For the setting `timers` of Megatron's models and optimizers."""
    if name in _TIMERS:
        return _TIMERS[name]
    return _PIPELINE if name.endswith(("-send", "-recv")) else _NOTHING
