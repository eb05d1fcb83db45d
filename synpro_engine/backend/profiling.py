"""A profiler's look at chosen steps of training: a trace, a table of what took most, the history of a GPU's memory.

Who starts a command says which steps (`requested`); loops of training ask a `StepProfiler`, which does nothing where
nobody asked. Ranges in a trace are the spans of `spans`.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from synpro_engine.backend.spans import SpanClock, listening
from synpro_engine.config import UserError, atomic_write_text

_OPS = 40  # rows of the table


@dataclass(frozen=True, kw_only=True)
class ProfileRequest:
    """Which steps to look at, by their numbers in `metrics.jsonl`, and how.

    by: `torch` records here; `nsys` only marks ranges and switches Nsight's capture on and off (`nsys profile -c
    cudaProfilerApi -t cuda,nvtx ...`), since two recorders cannot share a GPU's counters. ranks: None for all.
    written: of all files, as they come; empty where no loop made these steps.
    """

    root: Path
    """The run's directory; files come to `profile/` in it."""
    first: int
    last: int
    ranks: frozenset[int] | None = frozenset({0})
    by: Literal["torch", "nsys"] = "torch"
    memory: bool = False
    """Every allocation too: as a counter in the trace, and on a GPU as a snapshot for pytorch.org/memory_viz."""
    written: list[Path] = field(default_factory=list)


def steps_of(text: str, option: str) -> tuple[int, int]:
    """`12` or `10-12`, as (first, last). UserError, naming the option, for anything else."""
    found = re.fullmatch(r"([1-9]\d{0,9})(?:-([1-9]\d{0,9}))?", text)
    first, last = (int(found[1]), int(found[2] or found[1])) if found else (1, 0)
    if first > last:
        raise UserError(f"{option}: {text!r} is no step, such as 12, nor several, such as 10-12")
    return first, last


_request: ProfileRequest | None = None  # a process does one command


@contextlib.contextmanager
def requested(request: ProfileRequest) -> Iterator[None]:
    """Profile what loops of training make in the `with` block."""
    global _request
    _request = request
    try:
        yield
    finally:
        _request = None


class StepProfiler:
    """One loop's look at its steps. directory: the loop's own, by which its files are named."""

    def __init__(self, directory: Path, rank: int, device: torch.device) -> None:
        request = _request
        if request is not None and request.ranks is not None and rank not in request.ranks:
            request = None
        self._request, self._rank, self._device = request, rank, device
        if request is not None:
            parts = directory.resolve().relative_to(request.root.resolve()).parts
            self._name = "-".join(parts).removesuffix(".partial")  # a stage at work has that name
        self._open: contextlib.ExitStack | None = None

    @contextlib.contextmanager
    def step(self, number: int) -> Iterator[None]:
        """Around the step of that number, with what follows it in the loop."""
        request = self._request
        if request is None or not request.first <= number <= request.last:
            yield
            return
        if self._open is None:
            self._begin(request, number)
        self._last = number
        with record_function(f"step {number}"):
            yield
        if number == request.last:
            self.close()

    def _begin(self, request: ProfileRequest, number: int) -> None:
        self._first, self._open, self._recorded = number, contextlib.ExitStack(), None
        self._open.enter_context(listening(_Ranges(nvtx=self._cuda)))
        self._clock = SpanClock(self._device)
        self._open.enter_context(listening(self._clock))
        if request.by == "nsys":
            if self._cuda:
                torch.cuda.profiler.start()
            return
        if request.memory and self._cuda:
            torch.cuda.memory._record_memory_history()
        activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * self._cuda
        recorder = profile(activities=activities, record_shapes=True, profile_memory=request.memory)
        self._recorded = self._open.enter_context(recorder)

    def close(self) -> None:
        """Write what was recorded; also where the loop ends before the last of the steps."""
        if self._open is None or self._request is None:
            return
        seconds = self._clock.seconds()
        self._open.close()
        self._open = None
        if self._request.by == "nsys":
            if self._cuda:
                torch.cuda.profiler.stop()
            return
        assert self._recorded is not None
        steps = f"{self._first}-{self._last}" if self._last > self._first else str(self._first)
        start = self._request.root / "profile" / f"{self._name}-step-{steps}-rank{self._rank}"
        start.parent.mkdir(parents=True, exist_ok=True)
        trace, table = start.with_name(start.name + ".json.gz"), start.with_name(start.name + ".txt")
        self._recorded.export_chrome_trace(str(trace))
        order = "self_cuda_time_total" if self._cuda else "self_cpu_time_total"
        ops = self._recorded.key_averages().table(sort_by=order, row_limit=_OPS, max_name_column_width=70)
        atomic_write_text(table, f"{shares(seconds, self._last - self._first + 1)}\n\n{ops}\n")
        self._request.written.extend((trace, table))
        if self._request.memory and self._cuda:
            snapshot = start.with_name(start.name + "-memory.pickle")
            torch.cuda.memory._dump_snapshot(str(snapshot))
            torch.cuda.memory._record_memory_history(enabled=None)
            self._request.written.append(snapshot)

    @property
    def _cuda(self) -> bool:
        return self._device.type == "cuda"


def shares(seconds: Mapping[str, float], steps: int = 1) -> str:
    """What spans took of `steps` steps, for people: milliseconds a step and percent, the largest first."""
    total = sum(seconds.values())
    lines = [f"{'span':<14}{'ms a step':>12}{'share':>9}"]
    for name, taken in sorted(seconds.items(), key=lambda item: -item[1]):
        lines.append(f"{name:<14}{taken / steps * 1e3:>12.2f}{taken / total:>9.1%}")
    return "\n".join([*lines, f"{'all':<14}{total / steps * 1e3:>12.2f}"])


class _Ranges:
    """Shows spans in a trace: as torch's ranges, and as NVTX's for Nsight."""

    def __init__(self, *, nvtx: bool) -> None:
        self._nvtx = nvtx
        self._open: list[record_function] = []

    def open(self, name: str) -> None:
        """A span begins."""
        self._open.append(record_function(name))
        self._open[-1].__enter__()
        if self._nvtx:
            torch.cuda.nvtx.range_push(name)

    def close(self) -> None:
        """The innermost span ends."""
        if self._nvtx:
            torch.cuda.nvtx.range_pop()
        self._open.pop().__exit__(None, None, None)
