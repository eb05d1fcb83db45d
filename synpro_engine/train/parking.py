"""Models that are only read, on the host between the phases of a step that need them.

Their parameters stay the same objects and get other storage (`.data`); the copy on the host is made once, for nothing
writes to them. While it is away a model refuses to run.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from synpro_engine.model.model import Model
from synpro_engine.model.parked import ParkedError
from synpro_engine.train.host_memory import HostMemory

Needs = Callable[[str], None]
"""Told of the phase that begins: all that it reads is on the device when the call returns."""


class Reading(NamedTuple):
    """What some phase reads and nothing writes: models, and tensors beside them."""

    models: tuple[Model, ...] = ()
    tensors: tuple[Tensor, ...] = ()

    def __add__(self, other: Reading) -> Reading:
        """Both."""
        return Reading(self.models + other.models, self.tensors + other.tensors)

    @property
    def all_tensors(self) -> list[Tensor]:
        """The models' parameters too."""
        return [*(parameter for model in self.models for parameter in model.parameters()), *self.tensors]


NOTHING = Reading()


class Moved(NamedTuple):
    """What was copied between host and device, both ways, and how long it took with freeing and waiting."""

    bytes: int
    seconds: float


def stay(phase: str) -> None:
    """Nothing is moved."""
    del phase


class Parking:
    """What phases read, each storage on the device in those that need it and on the host in all others."""

    def __init__(self, reads: Mapping[str, Reading], kept: Iterable[Tensor]) -> None:
        """By phase. kept: tensors that are written to, or are needed throughout; what shares memory with them stays."""
        staying = {_address(tensor) for tensor in kept}
        phases, owners = dict[int, set[str]](), dict[int, dict[int, Tensor]]()
        for phase, reading in reads.items():
            for tensor in reading.all_tensors:
                assert tensor.grad is None, "what trains cannot be parked"
                if tensor.numel() and _address(tensor) not in staying:
                    phases.setdefault(_address(tensor), set()).add(phase)
                    owners.setdefault(_address(tensor), {})[id(tensor)] = tensor
        by_phases = dict[frozenset[str], list[list[Tensor]]]()
        for address, its in phases.items():
            by_phases.setdefault(frozenset(its), []).append(list(owners[address].values()))
        self._lots = [_Lot(its, groups) for its, groups in by_phases.items()]
        self._bytes, self._seconds = 0, 0.0
        self._hooks = [
            chunk.register_forward_pre_hook(_refuse)
            for model in {id(m): m for reading in reads.values() for m in reading.models}.values()
            for chunk in model.chunks
        ]

    @property
    def nbytes(self) -> int:
        """Of what can be parked."""
        return sum(lot.nbytes for lot in self._lots)

    def needs(self, phase: str) -> None:
        """Park what the phase does not read, then bring what it does."""
        start = time.perf_counter()
        # In this order: the one makes room for the other.
        moved = sum(lot.park() for lot in self._lots if phase not in lot.phases)
        moved += sum(lot.bring() for lot in self._lots if phase in lot.phases)
        self._bytes, self._seconds = self._bytes + moved, self._seconds + time.perf_counter() - start

    def take_counts(self) -> Moved:
        """Since this was last asked."""
        moved = Moved(self._bytes, self._seconds)
        self._bytes, self._seconds = 0, 0.0
        return moved

    def end(self) -> None:
        """Bring all back, and give the host's memory back."""
        for lot in self._lots:
            lot.bring()
            lot.release()
        for hook in self._hooks:
            hook.remove()
        self._lots, self._hooks = [], []


class _Lot:
    """Storages that the same phases need, each with the tensors that lie in it."""

    def __init__(self, phases: frozenset[str], groups: Sequence[Sequence[Tensor]]) -> None:
        self.phases, self._groups = phases, groups
        self._places = [[(t.storage_offset(), t.size(), t.stride()) for t in group] for group in groups]
        self._device = groups[0][0].device
        self._host, self._copies = HostMemory("models that are parked"), list[Tensor]()
        self._written = list[int]()
        self.nbytes = sum(group[0].untyped_storage().nbytes() for group in groups)
        self._here = True

    def park(self) -> int:
        """Bytes that were copied: the first time, and where someone wrote to them all the same."""
        if not self._here:
            return 0
        copied = 0 if self._copies and self._versions() == self._written else self.nbytes
        if copied:
            self._copies = self._host.copies([_bytes_of(group[0].untyped_storage()) for group in self._groups])
        for group in self._groups:
            for tensor in group:
                tensor.data = tensor.new_empty(0)
        self._here = False
        return copied

    def bring(self) -> int:
        """Bytes that were copied."""
        if self._here:
            return 0
        for copy, group, places in zip(self._copies, self._groups, self._places, strict=True):
            storage = torch.empty_like(copy, device=self._device).copy_(copy, non_blocking=True).untyped_storage()
            for tensor, place in zip(group, places, strict=True):
                tensor.data = torch.empty(0, dtype=tensor.dtype, device=self._device).set_(storage, *place)
        if self._device.type == "cuda":
            torch.cuda.current_stream().synchronize()
        self._here, self._written = True, self._versions()
        return self.nbytes

    def _versions(self) -> list[int]:
        """Which count the writes to each tensor."""
        return [tensor._version for group in self._groups for tensor in group]

    def release(self) -> None:
        """Give the host's memory back."""
        self._copies = []
        self._host.release()


def _address(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _bytes_of(storage: torch.UntypedStorage) -> Tensor:
    return torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)


def _refuse(chunk: Any, _inputs: Any) -> None:
    # Of what is shared with a model that stays, some parameters are here.
    if not all(parameter.numel() for parameter in chunk.parameters()):
        raise ParkedError
