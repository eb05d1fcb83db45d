"""Runs Gluon kernels for sm_90 without a GPU: each partition is a thread, and which goes on next is drawn.

Triton's interpreter knows no Gluon, and compiling proves nothing of barriers: a wrong one hangs, or lets a product read
what has not arrived. Here the functions that Gluon compiles run as the Python that they are, on stand-ins of the
language whose tensors are PyTorch's. Copies (TMA) and products (wgmma) end at times that are drawn as well, copies in
any order. What a schedule could get wrong raises `Fault` in every schedule that meets it:

- a hang: nobody can go on, and no copy or product is under way;
- a copy into memory that a product may still read, or that another copy still fills;
- a product of memory that is not wholly filled; sums that are used before they were waited for;
- a barrier that is used before `init`, or at which more arrive than it counts.

Not modelled: clusters, what the compiler makes of the code, layouts (they decide who holds what, not its value), and
order among the threads of a warp group. Only what the engine's kernels use is there; another name raises.
"""

import builtins
import random
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import FunctionType, SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from triton import language as tl
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import mbarrier, tma, warpgroup_mma, warpgroup_mma_wait
from triton.runtime.jit import JITFunction

from synpro_kernels.common.launch import Call


class Fault(Exception):
    """The kernel did what a GPU answers with a hang or with wrong numbers."""


def run(call: Call, seed: int) -> tuple[Tensor, ...]:
    """Run a launch on CPU tensors, all partitions and copies in an order that `seed` draws; returns its outputs.

    Raises Fault. Uninitialised shared memory is NaN, and so should outputs be (`nan_filled_empty`).
    """
    arguments = [_Descriptor(one) if hasattr(one, "block_shape") else _pointer(one) for one in call.arguments]
    for program in range(call.grid[0]):
        machine = _Machine(random.Random(f"{seed} {program}"))
        kernel = _stood_in(call.kernel, _Language(machine, program, call.grid[0]), {})
        kernel(*arguments, **call.options)
    return call.outputs


class _Partition(threading.Thread):
    """A partition's code. It runs when it is let, up to its next use of the hardware."""

    def __init__(self, function: Callable[..., None], arguments: Sequence[Any]) -> None:
        super().__init__(daemon=True, name=f"{function.__name__}")
        self.function, self.arguments = function, arguments
        self.ready: Callable[[], bool] = lambda: True
        self.waits_for = ""
        self.products: list[_Sum] = []
        """Under way, the oldest first."""
        self.error: BaseException | None = None
        self.ended = self.stopped = False
        self._turn, self._yielded = threading.Semaphore(0), threading.Semaphore(0)

    def run(self) -> None:
        self._turn.acquire()
        if self.stopped:
            return
        try:
            self.function(*self.arguments)
            if self.products:
                raise Fault(f"{self.name}: ends with products under way")
        except BaseException as error:  # told by the thread that lets it run
            self.error = error
        self.ended = True
        self._yielded.release()

    def go(self) -> None:
        """Let it run up to where it pauses next."""
        self._turn.release()
        self._yielded.acquire()
        if self.error is not None:
            raise self.error

    def stop(self) -> None:
        """End it where it stands."""
        self.stopped = True
        self._turn.release()
        self.join()

    def pause(self, ready: Callable[[], bool], what: str) -> None:
        """Called by itself: let others run, until `ready` at least."""
        self.ready, self.waits_for = ready, what
        self._yielded.release()
        self._turn.acquire()
        if self.stopped:
            raise SystemExit


@dataclass
class _Machine:
    """One block: its partitions, and what the hardware has under way."""

    draw: random.Random
    partitions: list[_Partition] = field(default_factory=list)
    copies: list[Callable[[], None]] = field(default_factory=list)
    current: _Partition | None = None

    def specialise(self, functions: Sequence[tuple[Callable[..., None], Sequence[Any]]]) -> None:
        """Run the partitions to their ends. Raises what one of them raises, and Fault where none can go on."""
        self.partitions = [_Partition(*one) for one in functions]
        # Each schedule favours some: one that is slow throughout finds other faults than one that is slow at times.
        weight = {id(one): self.draw.choice((0.05, 1.0, 1.0)) for one in self.partitions}
        copying, multiplying = self.draw.choice((0.05, 1.0)), self.draw.choice((0.05, 1.0))
        for one in self.partitions:
            one.start()
        try:
            while living := [one for one in self.partitions if not one.ended]:
                choices: list[tuple[float, Callable[[], None]]] = [
                    *((weight[id(one)], lambda one=one: self._let(one)) for one in living if one.ready()),
                    *((copying, copy) for copy in self.copies),
                    *((multiplying, one.products[0].end) for one in self.partitions if one.products),
                ]
                if not choices:
                    raise Fault("hangs: " + "; ".join(f"{one.name} waits for {one.waits_for}" for one in living))
                self.draw.choices([what for _, what in choices], [chance for chance, _ in choices])[0]()
        finally:
            for one in self.partitions:
                one.stop()

    def _let(self, partition: _Partition) -> None:
        self.current = partition
        partition.go()
        self.current = None

    def pause(self, ready: Callable[[], bool] = lambda: True, what: str = "its turn") -> None:
        """Where the hardware is used: another may come first. Before partitions begin there is no other."""
        if self.current is not None:
            self.current.pause(ready, what)


# ---- shared memory and what uses it ----------------------------------------------------------------------------------


class _Buffer:
    """A stage of shared memory, and who is at it."""

    def __init__(self, shape: Sequence[int], dtype: torch.dtype, name: str) -> None:
        self.values, self.name = torch.full(tuple(shape), float("nan"), dtype=dtype), name
        self.filled, self.filling, self.readers = False, False, 0

    def permute(self, order: Sequence[int]) -> "_View":
        return _View(self, tuple(order))


@dataclass(frozen=True)
class _View:
    buffer: _Buffer
    order: tuple[int, ...] = (0, 1)

    @property
    def values(self) -> Tensor:
        return self.buffer.values.permute(self.order)


class _Barrier:
    """An mbarrier: a phase ends when all have arrived and all bytes that were announced have come."""

    def __init__(self, name: str) -> None:
        self.name, self.count, self.pending, self.bytes, self.phases = name, 0, 0, 0, 0

    def arrive(self, count: int) -> None:
        if not self.count:
            raise Fault(f"{self.name}: used before init")
        self.pending -= count
        if self.pending < 0:
            raise Fault(f"{self.name}: more arrive than the {self.count} that it counts")
        self.settle()

    def settle(self) -> None:
        if self.pending == 0 and self.bytes == 0:
            self.phases += 1
            self.pending = self.count


@dataclass(frozen=True)
class _Shared:
    """What `allocate_shared_memory` returns: buffers or barriers by index."""

    shape: Sequence[int]
    places: Sequence[Any]

    def index(self, at: Any) -> Any:
        return self.places[int(at)]


@dataclass
class _Sum:
    """A product under way, or its sums once it has been waited for."""

    of: _Partition
    operands: tuple[_View, _View]
    start: "Tensor | _Sum"
    values: Tensor | None = None

    def __mul__(self, factor: Any) -> Any:
        raise Fault(f"{self.of.name}: sums are used before they were waited for")

    def end(self) -> None:
        """Operands are read now, at the last moment."""
        before = self.start.values if isinstance(self.start, _Sum) else self.start
        assert before is not None  # products of a partition end in their order
        a, b = (one.values.float() for one in self.operands)
        self.values = before + a @ b
        for one in self.operands:
            one.buffer.readers -= 1
        self.of.products.remove(self)


class _Descriptor:
    """A tensor descriptor: blocks of a matrix, zeros beyond its edge."""

    def __init__(self, descriptor: Any) -> None:
        self.base, self.shape = descriptor.base, list(descriptor.block_shape)
        self.dtype, self.layout = self.base.dtype, descriptor.layout
        size = self.shape[0] * self.shape[1] * self.base.element_size()
        self.block_type = SimpleNamespace(shape=self.shape, nbytes=size)

    def block(self, at: Sequence[Any]) -> Tensor:
        row, column = map(int, at)
        found = torch.zeros(self.shape, dtype=self.dtype)
        part = self.base[row : row + self.shape[0], column : column + self.shape[1]]
        found[: part.shape[0], : part.shape[1]] = part
        return found


@dataclass(frozen=True)
class _Pointer:
    to: Tensor
    at: Any = 0

    def __add__(self, offset: Any) -> "_Pointer":
        return _Pointer(self.to, self.at + offset)


def _pointer(argument: Any) -> Any:
    return _Pointer(argument.view(-1)) if isinstance(argument, Tensor) else argument


# ---- the language ----------------------------------------------------------------------------------------------------


class _Language:
    """Stand-ins of the modules that a kernel's source names, for one program."""

    def __init__(self, machine: _Machine, program: int, programs: int) -> None:
        self.machine, self.allocated = machine, 0
        both = {
            name: getattr(self, name)
            for name in (
                "max",
                "sum",
                "maximum",
                "minimum",
                "where",
                "exp2",
                "zeros",
                "full",
                "arange",
                "load",
                "store",
            )
        }
        self.triton = SimpleNamespace(**both)
        self.gluon = SimpleNamespace(
            **both, float32=torch.float32, int32=torch.int32, int64=torch.int64,
            program_id=lambda axis: program, num_programs=lambda axis: programs, static_range=range,
            num_warps=lambda: 4, cdiv=lambda a, b: -(-a // b), allocate_shared_memory=self.allocate,
            warp_specialize=lambda functions, warps, registers: machine.specialise(functions),
            NVMMADistributedLayout=lambda *of: of, SliceLayout=lambda *of: of,
        )  # fmt: skip
        self.barriers = SimpleNamespace(
            init=self.init, wait=self.wait, arrive=self.arrive, expect=self.expect, MBarrierLayout=lambda: None
        )
        self.copies = SimpleNamespace(async_copy_global_to_shared=self.copy)

    def stands_for(self, value: Any) -> Any:
        """What a global of the kernel's source becomes; itself where nothing stands for it."""
        pairs = [
            (tl, self.triton), (gl, self.gluon), (mbarrier, self.barriers), (tma, self.copies),
            (warpgroup_mma, self.multiply), (warpgroup_mma_wait, self.wait_for_products),
        ]  # fmt: skip
        return next((mine for theirs, mine in pairs if value is theirs), value)

    # values: as a GPU has them, where maxima drop NaN
    @staticmethod
    def max(x: Tensor, axis: int) -> Tensor:
        return x.nan_to_num(nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf).amax(axis)

    @staticmethod
    def sum(x: Tensor, axis: int) -> Tensor:
        return x.sum(axis)

    @staticmethod
    def maximum(a: Any, b: Any) -> Tensor:
        return torch.fmax(torch.as_tensor(a), torch.as_tensor(b))

    @staticmethod
    def minimum(a: Any, b: Any) -> Tensor:
        return torch.fmin(torch.as_tensor(a), torch.as_tensor(b))

    where, exp2 = staticmethod(torch.where), staticmethod(torch.exp2)

    @staticmethod
    def zeros(shape: Sequence[int], dtype: torch.dtype, layout: Any) -> Tensor:
        return torch.zeros(tuple(shape), dtype=dtype)

    @staticmethod
    def full(shape: Sequence[int], value: float, dtype: torch.dtype, layout: Any) -> Tensor:
        return torch.full(tuple(shape), value, dtype=dtype)

    @staticmethod
    def arange(start: int, end: int, layout: Any) -> Tensor:
        return torch.arange(start, end)

    @staticmethod
    def load(pointer: _Pointer, mask: Tensor, other: float) -> Tensor:
        return torch.where(mask, pointer.to[torch.where(mask, pointer.at, 0)], other)

    @staticmethod
    def store(pointer: _Pointer, values: Tensor, mask: Tensor) -> None:
        pointer.to[pointer.at[mask]] = values[mask]

    # what takes time
    def allocate(self, dtype: torch.dtype, shape: Sequence[int], layout: Any) -> _Shared:
        self.allocated += 1
        name = f"allocation {self.allocated}"
        if layout is None:
            return _Shared(shape, [_Barrier(f"{name}, barrier {at}") for at in range(shape[0])])
        return _Shared(shape, [_Buffer(shape[1:], dtype, f"{name}, stage {at}") for at in range(shape[0])])

    def init(self, barrier: _Barrier, count: int) -> None:
        barrier.count = barrier.pending = count

    def wait(self, barrier: _Barrier, phase: Any) -> None:
        parity = int(phase)
        self.machine.pause(lambda: barrier.phases % 2 != parity, f"{barrier.name}, parity {parity}")

    def arrive(self, barrier: _Barrier, *, count: int = 1, pred: Any = True) -> None:
        self.machine.pause()
        if pred:
            barrier.arrive(count)

    def expect(self, barrier: _Barrier, size: int) -> None:
        self.machine.pause()
        barrier.bytes += size
        barrier.arrive(1)

    def copy(self, descriptor: _Descriptor, at: Sequence[Any], barrier: _Barrier, buffer: _Buffer) -> None:
        self.machine.pause()
        if buffer.readers or buffer.filling:
            raise Fault(f"{buffer.name}: is overwritten while a product or a copy is at it")
        buffer.filled, buffer.filling = False, True
        buffer.values.fill_(float("nan"))

        def end() -> None:
            buffer.values.copy_(descriptor.block(at))
            buffer.filled, buffer.filling = True, False
            self.machine.copies.remove(end)
            barrier.bytes -= descriptor.block_type.nbytes
            barrier.settle()

        self.machine.copies.append(end)

    def multiply(self, a: Any, b: Any, acc: Any, *, is_async: bool) -> _Sum:
        assert is_async and self.machine.current is not None
        self.machine.pause()
        operands = tuple(one if isinstance(one, _View) else _View(one) for one in (a, b))
        for one in operands:
            if not one.buffer.filled:
                raise Fault(f"{one.buffer.name}: is read before it is filled")
            one.buffer.readers += 1
        product = _Sum(self.machine.current, operands, acc)
        self.machine.current.products.append(product)
        return product

    def wait_for_products(self, *, num_outstanding: int, deps: tuple[_Sum]) -> Any:
        partition = self.machine.current
        assert partition is not None
        self.machine.pause(lambda: len(partition.products) <= num_outstanding, "its products")
        return deps[0] if deps[0].values is None or num_outstanding else deps[0].values


def _stood_in(function: Any, language: _Language, known: dict[int, FunctionType]) -> FunctionType:
    """The Python of a jitted function and of those that it calls, on the stand-ins."""
    source = function.fn
    if id(source) not in known:
        names: dict[str, Any] = {"__builtins__": builtins, "range": lambda *of: map(torch.tensor, range(*map(int, of)))}
        known[id(source)] = FunctionType(source.__code__, names, source.__name__)
        for name in source.__code__.co_names:
            value = source.__globals__.get(name)
            if isinstance(value, JITFunction):
                names[name] = _stood_in(value, language, known)
            elif value is not None:
                names[name] = value.value if isinstance(value, tl.constexpr) else language.stands_for(value)
    return known[id(source)]
