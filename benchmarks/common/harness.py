"""The measuring core: interleaved rounds, their spread, and peak extra memory, on CPU and CUDA alike.

Knows steps (functions of a turn number) and no op. What a step must compute, and whether it did, is said elsewhere.
Contenders take turns (A B C A B C ...), so that a slow minute of the machine falls on all of them.
"""

from __future__ import annotations

import ctypes
import gc
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

Step = Callable[[int], object]
"""One timed unit of work. The argument is the turn, which chooses among input sets; the result is freed untimed."""

_FILLER_BYTES = 256 << 20


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One timed step. `cpu_seconds` sums all threads of this process, waiting ones that spin included."""

    seconds: float
    cpu_seconds: float


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Median and quartiles of a contender's samples, in seconds."""

    median: float
    low: float
    high: float
    cpu_median: float
    rounds: int


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """First quartile, median and third quartile. Raises ValueError where there is no value."""
    if not values:
        raise ValueError("values: expected at least one")
    low, median, high = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else [*values] * 3
    return low, median, high


def summarise(samples: Sequence[Sample]) -> Timing:
    """Reduce samples to their median and quartiles. Raises ValueError where there are none."""
    low, median, high = quartiles([sample.seconds for sample in samples])
    cpu = statistics.median(sample.cpu_seconds for sample in samples)
    return Timing(median=median, low=low, high=high, cpu_median=cpu, rounds=len(samples))


def interleave(
    steps: Mapping[str, Step],
    clock: Callable[[Step, int], Sample],
    *,
    rounds: int,
    warmups: int,
    progress: Callable[[str], None] = lambda text: None,
) -> dict[str, list[Sample]]:
    """Let the steps take turns for `warmups` untimed and `rounds` timed rounds; each step's samples, turn by turn."""
    if rounds < 1 or warmups < 0:
        raise ValueError(f"rounds: expected >= 1 (and warmups >= 0), got {rounds} (and {warmups})")
    samples: dict[str, list[Sample]] = {name: [] for name in steps}
    collecting = gc.isenabled()
    gc.disable()
    try:
        for turn in range(warmups + rounds):
            gc.collect()
            label = f"warm-up {turn + 1}" if turn < warmups else f"round {turn + 1 - warmups} of {rounds}"
            for name, step in steps.items():
                progress(f"{label}: {name}")
                sample = clock(step, turn)
                if turn >= warmups:
                    samples[name].append(sample)
    finally:
        if collecting:
            gc.enable()
    return samples


def cpu_clock(step: Step, turn: int) -> Sample:
    """Time a step on the CPU."""
    cpu, wall = time.process_time(), time.perf_counter()
    result = step(turn)
    sample = Sample(seconds=time.perf_counter() - wall, cpu_seconds=time.process_time() - cpu)
    del result
    return sample


class CudaClock:
    """Times a step between two events of the current stream.

    A large fill goes first: it pushes the step's inputs out of the L2 cache, and keeps the device busy while the host
    queues the step's first launches, so that what is timed is the device's work. It also waits out earlier work.
    """

    def __init__(self) -> None:
        self._filler = torch.empty(_FILLER_BYTES, dtype=torch.uint8, device="cuda")

    def __call__(self, step: Step, turn: int) -> Sample:
        """Return the seconds between the events."""
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.cuda.synchronize()
        self._filler.fill_(turn & 1)
        cpu = time.process_time()
        start.record()
        result = step(turn)
        end.record()
        end.synchronize()
        sample = Sample(seconds=start.elapsed_time(end) / 1e3, cpu_seconds=time.process_time() - cpu)
        del result
        return sample


def clock_for(device: torch.device) -> Callable[[Step, int], Sample]:
    """Return the clock of a device."""
    return CudaClock() if device.type == "cuda" else cpu_clock


def copies_beyond_cache(bytes_per_set: int, device: torch.device, *, most: int = 8) -> int:
    """How many input sets to rotate among so that a step does not find its inputs in the L2 cache (1 on the CPU)."""
    if device.type != "cuda":
        return 1
    cache = torch.cuda.get_device_properties(device).L2_cache_size
    return max(1, min(most, math.ceil(2 * cache / max(bytes_per_set, 1))))


def measured_peak(device: torch.device, dtype: torch.dtype, size: int | None = None) -> tuple[Step, float]:
    """Return a large square matrix product as a step, and its FLOPs: what this machine reaches today."""
    size = size or (8192 if device.type == "cuda" else 2048)
    a, b = (torch.randn(size, size, device=device, dtype=torch.float32).to(dtype) for _ in range(2))
    out = torch.empty_like(a)
    return lambda turn: torch.mm(a, b, out=out), 2.0 * size**3


# ---- memory ----------------------------------------------------------------------------------------------------------


def peak_extra_bytes(step: Step, device: torch.device) -> int:
    """Growth of peak memory over what is held before the step: its results, gradients and workspace together.

    On CUDA this is exact (the allocator counts). On the CPU it is resident memory: call it in a process of its own (see
    `processes`), since memory that another contender freed may still be resident and would hide growth.
    """
    step(0)  # loads libraries and compiles, once
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        held = torch.cuda.memory_allocated()
        result = step(1)
        torch.cuda.synchronize()
        del result
        return torch.cuda.max_memory_allocated() - held
    _return_free_memory()
    Path("/proc/self/clear_refs").write_text("5")
    held = status_bytes("VmRSS")
    result = step(1)
    peak = status_bytes("VmHWM")
    del result
    return max(0, peak - held)


def _return_free_memory() -> None:
    """Give the heap's free pages back to the kernel, where the C library can (glibc)."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def status_bytes(field: str) -> int:
    """A size that the kernel tells of this process: `VmRSS`, or the most that it ever was, `VmHWM`."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) << 10
    raise OSError(f"/proc/self/status has no {field}")
