"""Runs Gluon kernels for sm_90 without a GPU, as the Python that they are, on stand-ins of the language.

Triton's interpreter knows no Gluon, and compiling proves nothing of barriers. `run(call, seed)` runs a launch on CPU
tensors; `gluon_machine` has its partitions, copies and products go on in an order that the seed draws. In any schedule
that meets them these raise `Fault`:

- a hang: nobody can go on, and no copy or product is under way;
- a copy into memory that a product may still read, or that another copy still fills;
- a product of memory that is not wholly filled; sums that are used before they were waited for;
- a barrier that is used before `init`, or at which more arrive than it counts.

Not modelled: clusters, what the compiler makes of the code, layouts (they decide who holds what, not its value), and
order among the threads of a group of warps. Only what the engine's kernels use is there; another name raises.
"""

import builtins
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import FunctionType, SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from triton import language as tl
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import mbarrier, tma, warpgroup_mma, warpgroup_mma_wait
from triton.runtime.jit import JITFunction

from synpro_kernels.common.launch import Call
from synpro_kernels.testing.gluon_machine import Barrier, Machine, Product, Stage, View


def run(call: Call, seed: int) -> tuple[Tensor, ...]:
    """Run a launch on CPU tensors in an order that `seed` draws; returns its outputs. Raises Fault.

    Shared memory is NaN before it is written, and so should outputs be (`nan_filled_empty`).
    """
    arguments = [_argument(one) for one in call.arguments]
    [programs] = call.grid
    for program in range(programs):
        language = _Language(Machine(random.Random(f"{seed} {program}")), program, programs)
        language.python_of(call.kernel)(*arguments, **call.options)
    return call.outputs


def _argument(value: Any) -> Any:
    if hasattr(value, "block_shape"):
        return _Descriptor(value)
    return _Pointer(value.view(-1)) if isinstance(value, Tensor) else value


class _Descriptor:
    """A tensor descriptor: blocks of a matrix, zeros beyond its edge."""

    def __init__(self, descriptor: Any) -> None:
        self.base, self.shape, self.layout = descriptor.base, list(descriptor.block_shape), descriptor.layout
        self.dtype = self.base.dtype
        self.block_type = SimpleNamespace(nbytes=self.shape[0] * self.shape[1] * self.base.element_size())

    def block(self, at: Sequence[Any]) -> Tensor:
        rows, columns = (slice(int(first), int(first) + size) for first, size in zip(at, self.shape, strict=True))
        part, found = self.base[rows, columns], torch.zeros(self.shape, dtype=self.dtype)
        found[: part.shape[0], : part.shape[1]] = part
        return found


@dataclass(frozen=True)
class _Pointer:
    to: Tensor
    at: Any = 0

    def __add__(self, offset: Any) -> "_Pointer":
        return _Pointer(self.to, self.at + offset)


@dataclass(frozen=True)
class _Shared:
    """What `allocate_shared_memory` returns: stages or barriers by index."""

    shape: Sequence[int]
    places: Sequence[Any]

    def index(self, at: Any) -> Any:
        return self.places[int(at)]


class _Language:
    """Stand-ins for the modules that a kernel's source names, for one program."""

    def __init__(self, machine: Machine, program: int, programs: int) -> None:
        self.machine, self.allocations = machine, 0
        self.known: dict[Any, FunctionType] = {}
        both = {"maximum": _maximum, "max": _max, "where": torch.where, "exp2": torch.exp2, "sum": torch.sum}
        gluon = SimpleNamespace(
            **both, minimum=lambda a, b: torch.minimum(torch.as_tensor(a), torch.as_tensor(b)),
            float32=torch.float32, int32=torch.int32, int64=torch.int64, static_range=range,
            cdiv=lambda a, b: -(-a // b),
            zeros=lambda shape, dtype, layout: torch.zeros(shape, dtype=dtype),
            full=lambda shape, value, dtype, layout: torch.full(shape, value, dtype=dtype),
            arange=lambda start, end, layout: torch.arange(start, end), load=_load, store=_store,
            program_id=lambda axis: program, num_programs=lambda axis: programs, num_warps=lambda: 4,
            NVMMADistributedLayout=lambda *of: of, SliceLayout=lambda *of: of, allocate_shared_memory=self.allocate,
            warp_specialize=lambda functions, warps, registers: machine.specialise(functions),
        )  # fmt: skip
        self.stand_ins = [
            (tl, SimpleNamespace(**both)), (gl, gluon), (warpgroup_mma, self.multiply),
            (warpgroup_mma_wait, self.wait_for_products), (tma, SimpleNamespace(async_copy_global_to_shared=self.copy)),
            (mbarrier, SimpleNamespace(
                init=_init, wait=self.wait, arrive=self.arrive, expect=self.expect, MBarrierLayout=lambda: None
            )),
        ]  # fmt: skip

    def python_of(self, function: JITFunction[Any]) -> Callable[..., Any]:
        """The Python of a jitted function and of those that it calls, on the stand-ins."""
        source = function.fn
        if source not in self.known:
            # A loop's variable is a tensor to the compiler, and has a tensor's methods.
            names: dict[str, Any] = {"__builtins__": builtins, "range": _range}
            self.known[source] = FunctionType(source.__code__, names, source.__name__)
            for name in set(source.__code__.co_names) & source.__globals__.keys():
                names[name] = self._stands_for(source.__globals__[name])
        return self.known[source]

    def _stands_for(self, value: Any) -> Any:
        if isinstance(value, JITFunction):
            return self.python_of(value)
        if isinstance(value, tl.constexpr):
            return value.value
        return next((mine for theirs, mine in self.stand_ins if value is theirs), value)

    def allocate(self, dtype: torch.dtype, shape: Sequence[int], layout: Any) -> _Shared:
        self.allocations += 1
        names = [f"allocation {self.allocations}, {at}" for at in range(shape[0])]
        return _Shared(shape, [Stage(shape[1:], dtype, name) if layout else Barrier(name) for name in names])

    def wait(self, barrier: Barrier, phase: Any) -> None:
        parity = int(phase)
        self.machine.pause(lambda: barrier.phases % 2 != parity, f"{barrier.name}, parity {parity}")

    def arrive(self, barrier: Barrier, *, count: int = 1, pred: Any = True) -> None:
        self.machine.pause()
        if pred:
            barrier.arrive(count)

    def expect(self, barrier: Barrier, size: int) -> None:
        self.machine.pause()
        barrier.bytes += size
        barrier.arrive(1)

    def copy(self, descriptor: _Descriptor, at: Sequence[Any], barrier: Barrier, stage: Stage) -> None:
        self.machine.pause()
        stage.fill(self.machine, descriptor.block(at), barrier)

    def multiply(self, a: Stage | View, b: Stage | View, acc: Any, *, is_async: bool) -> Product:
        assert is_async and self.machine.current is not None
        self.machine.pause()
        first, second = (one if isinstance(one, View) else View(one) for one in (a, b))
        return Product(self.machine.current, (first, second), acc)

    def wait_for_products(self, *, num_outstanding: int, deps: tuple[Product]) -> Any:
        partition = self.machine.current
        assert partition is not None
        self.machine.pause(lambda: len(partition.products) <= num_outstanding, "its products")
        return deps[0] if num_outstanding else deps[0].values


def _range(*bounds: Any) -> Any:
    return map(torch.tensor, range(*map(int, bounds)))


def _init(barrier: Barrier, count: int) -> None:
    barrier.count = barrier.pending = count


def _maximum(a: Tensor, b: Tensor) -> Tensor:
    """NaN is dropped, as the hardware does; `_max` likewise."""
    return torch.fmax(a, b)


def _max(x: Tensor, axis: int) -> Tensor:
    return x.nan_to_num(nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf).amax(axis)


def _load(pointer: _Pointer, mask: Tensor, other: float) -> Tensor:
    return torch.where(mask, pointer.to[torch.where(mask, pointer.at, 0)], other)


def _store(pointer: _Pointer, values: Tensor, mask: Tensor) -> None:
    pointer.to[pointer.at[mask]] = values[mask]
