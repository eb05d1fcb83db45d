"""One block of an sm_90 GPU as `gluon_language` needs it: partitions that take turns, barriers, copies and products.

Each partition is a thread, and one thing goes on at a time: a partition up to its next use of the hardware, a copy
(TMA) or a product (wgmma) that ends. Which is drawn. What a GPU would answer with a hang or with wrong numbers raises
`Fault`.
"""

import random
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


class Fault(Exception):
    """The kernel did what a GPU answers with a hang or with wrong numbers."""


class Partition(threading.Thread):
    """A partition's code. It goes on when it is let, up to its next use of the hardware."""

    def __init__(self, function: Callable[..., None], arguments: Sequence[Any]) -> None:
        super().__init__(daemon=True, name=function.__name__)
        self.function, self.arguments = function, arguments
        self.ready: Callable[[], bool] = lambda: True
        self.waits_for = "its turn"
        self.products: list[Product] = []
        """Under way, the oldest first: they end in their order."""
        self.ended = False
        self._error: BaseException | None = None
        self._stopped = False
        self._turn, self._paused = threading.Semaphore(0), threading.Semaphore(0)

    def run(self) -> None:
        """Called by the thread."""
        self._turn.acquire()
        try:
            if not self._stopped:
                self.function(*self.arguments)
            if self.products and not self._stopped:
                raise Fault(f"{self.name}: ends with products under way")
        except BaseException as error:  # raised again where it is let go on
            self._error = error
        self.ended = True
        self._paused.release()

    def go(self) -> None:
        """Let it go on up to where it pauses next. Raises what it raises."""
        self._turn.release()
        self._paused.acquire()
        if self._error is not None:
            raise self._error

    def pause(self, ready: Callable[[], bool], what: str) -> None:
        """Called by its own code: let others go on, until `ready` at least."""
        self.ready, self.waits_for = ready, what
        self._paused.release()
        self._turn.acquire()
        if self._stopped:
            raise SystemExit

    def stop(self) -> None:
        """End it where it stands."""
        self._stopped = True
        self._turn.release()
        self.join()


@dataclass
class Machine:
    """The block: its partitions, and the copies under way, which end in any order."""

    draw: random.Random
    partitions: list[Partition] = field(default_factory=list)
    copies: list[Callable[[], None]] = field(default_factory=list)
    current: Partition | None = None

    def specialise(self, functions: Sequence[tuple[Callable[..., None], Sequence[Any]]]) -> None:
        """Run partitions to their ends. Raises what one of them raises, and Fault where nothing can go on."""
        self.partitions = [Partition(*one) for one in functions]
        # Some are slow throughout a schedule: that finds other faults than being late at times.
        pace = [self.draw.choice((0.05, 1.0, 1.0)) for _ in self.partitions]
        copying, multiplying = self.draw.choice((0.05, 1.0)), self.draw.choice((0.05, 1.0))
        for one in self.partitions:
            one.start()
        try:
            while living := [one for one in self.partitions if not one.ended]:
                choices: list[tuple[float, Callable[[], None]]] = [
                    *((pace[k], lambda one=one: self._let(one)) for k, one in enumerate(self.partitions)
                      if not one.ended and one.ready()),
                    *((copying, copy) for copy in self.copies),
                    *((multiplying, one.products[0].end) for one in living if one.products),
                ]  # fmt: skip
                if not choices:
                    raise Fault("hangs: " + "; ".join(f"{one.name} waits for {one.waits_for}" for one in living))
                self.draw.choices([what for _, what in choices], [chance for chance, _ in choices])[0]()
        finally:
            for one in self.partitions:
                one.stop()

    def _let(self, partition: Partition) -> None:
        self.current = partition
        partition.go()
        self.current = None

    def pause(self, ready: Callable[[], bool] = lambda: True, what: str = "its turn") -> None:
        """Where a partition uses the hardware another may come first. Before there are any there is no other."""
        if self.current is not None:
            self.current.pause(ready, what)


class Stage:
    """A stage of shared memory, NaN until it is filled, and who is at it."""

    def __init__(self, shape: Sequence[int], dtype: torch.dtype, name: str) -> None:
        self.values, self.name = torch.full(tuple(shape), float("nan"), dtype=dtype), name
        self.filled, self.filling, self.readers = False, False, 0

    def permute(self, order: Sequence[int]) -> "View":
        """The same memory with its axes in another order."""
        return View(self, tuple(order))

    def fill(self, machine: Machine, source: Tensor, barrier: "Barrier") -> None:
        """Begin a copy that tells the barrier its bytes when it ends. Fault where somebody is at this memory."""
        if self.readers or self.filling:
            raise Fault(f"{self.name}: is overwritten while a product or a copy is at it")
        self.filled, self.filling = False, True
        self.values.fill_(float("nan"))

        def end() -> None:
            self.values.copy_(source)
            self.filled, self.filling = True, False
            machine.copies.remove(end)
            barrier.bytes -= source.nbytes
            barrier.settle()

        machine.copies.append(end)


@dataclass(frozen=True)
class View:
    """A stage as a product reads it."""

    stage: Stage
    order: tuple[int, ...] = (0, 1)


class Barrier:
    """An mbarrier: a phase ends when all have arrived and all bytes that were announced have come."""

    def __init__(self, name: str) -> None:
        self.name, self.count, self.pending, self.bytes, self.phases = name, 0, 0, 0, 0

    def arrive(self, count: int) -> None:
        """Count arrivals. Fault before `init`, and where more arrive than the barrier counts."""
        if not self.count:
            raise Fault(f"{self.name}: is used before init")
        self.pending -= count
        if self.pending < 0:
            raise Fault(f"{self.name}: more arrive than the {self.count} that it counts")
        self.settle()

    def settle(self) -> None:
        """End the phase where nothing of it is left."""
        if self.pending == 0 and self.bytes == 0:
            self.phases += 1
            self.pending = self.count


@dataclass
class Product:
    """A product under way, or its sums once it has ended. start: what it adds to."""

    of: Partition
    operands: tuple[View, View]
    start: "Tensor | Product"
    values: Tensor | None = None

    def __post_init__(self) -> None:
        for one in self.operands:
            if not one.stage.filled:
                raise Fault(f"{one.stage.name}: is read before it is filled")
            one.stage.readers += 1
        self.of.products.append(self)

    def __mul__(self, factor: Any) -> Any:
        raise Fault(f"{self.of.name}: sums are used before they were waited for")

    def end(self) -> None:
        """Read the operands, at the last moment."""
        before = self.start.values if isinstance(self.start, Product) else self.start
        assert before is not None  # the products of a partition end in their order
        a, b = (one.stage.values.permute(one.order).float() for one in self.operands)
        self.values = before + a @ b
        for one in self.operands:
            one.stage.readers -= 1
        self.of.products.remove(self)
