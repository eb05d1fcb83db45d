"""Activations that wait on the host: what a chunk's first blocks keep for the backward pass leaves the device.

Autograd hands over what its operations save (`saved_tensors_hooks`), so that the bytes that come back are those that
went. Weights stay, and so does what a block is given beside its hidden states (masks, rotary angles), which all blocks
share. On a GPU, copies go over a stream of their own; where a block's are asked for, those of the block before it are
sent for too, whose turn is next. On a CPU the way is the same and gains nothing. No GPU has run the part that is a
GPU's alone (`_Bus`).
"""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

_LEAST_BYTES = 1024  # what is smaller is not worth a copy
_Moved = tuple[Tensor, Any]
"""Memory of the device that a copy reads or writes, and the event behind that copy."""


class Offload:
    """Of one of Megatron's chunks, for its first `blocks` blocks."""

    def __init__(self, chunk: Any, blocks: int, *, inputs_alone: bool) -> None:
        """inputs_alone: blocks are made again in the backward pass, and keep what they are given."""
        self._chunk, self._inputs_alone = chunk, inputs_alone
        self._device = next(chunk.parameters()).device
        self._bus = _Bus(self._device)
        self._lot: _Lot | None = None
        self._stays = set[int]()
        self._given = 0  # address of the input that is kept, where that is all
        # Its input came from another stage, and the schedule keeps that until the backward pass in any case.
        self._receives = None if chunk.pre_process else chunk.decoder.layers[0]
        self._on = self._within = False
        self.moved = 0
        """Bytes that the last pass sent to the host."""
        for layer in chunk.decoder.layers[:blocks]:
            layer.register_forward_pre_hook(self._before, with_kwargs=True)
            layer.register_forward_hook(self._behind)

    @contextmanager
    def reading(self) -> Iterator[None]:
        """While the chunk reads a micro-batch that it trains on; of other passes nothing is sent."""
        if not (self._chunk.training and torch.is_grad_enabled()):
            yield
            return
        # Looked up each time: an engine that is built later moves weights into buffers of its own.
        weights = {parameter.untyped_storage().data_ptr() for parameter in self._chunk.parameters()}
        self._bus.arrive()  # what a backward pass sent for and did not ask for
        self._lot, self._on, self.moved = None, True, 0
        try:
            with saved_tensors_hooks(partial(self._pack, weights), _unpack):
                yield
        finally:
            self._bus.give_up()
            self._lot, self._on, self._within = None, False, False

    def expected(self, hidden: Tensor) -> Tensor:
        """What the chunk returns: with its gradient the backward pass begins, and the last block's are sent for."""
        if self._lot is not None and hidden.requires_grad:
            lot = self._lot
            hidden.register_hook(lambda _: lot.send_for())
        return hidden

    def _before(self, layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not self._on:  # made again, in a backward pass
            return
        hidden = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]
        beside = [*args, *(value for key, value in kwargs.items() if key != "hidden_states")]
        self._stays = {t.untyped_storage().data_ptr() for t in _tensors(beside) if t is not hidden}
        if layer is self._receives:
            self._stays.add(hidden.untyped_storage().data_ptr())
        self._bus.begin_block()
        self._lot, self._within = _Lot(self._bus, self._lot), True
        self._given = hidden.untyped_storage().data_ptr() if self._inputs_alone else 0

    def _behind(self, *_: Any) -> None:
        if self._on and not self._inputs_alone:
            self._within = False
            assert self._lot is not None
            self._lot.close()

    def _pack(self, weights: set[int], tensor: Tensor) -> Any:
        storage = tensor.untyped_storage()
        place, size = storage.data_ptr(), storage.nbytes()
        stays = place in weights or place in self._stays or (self._inputs_alone and place != self._given)
        elsewhere = not self._within or size < _LEAST_BYTES or tensor.device != self._device
        if self._lot is None or elsewhere or stays:
            # Without its place in the graph, which autograd gives it again: an operation's own output would else hold
            # that operation, which holds it, and a pass that is never gone backward would stay for ever.
            return tensor if tensor.is_leaf else tensor.detach()
        kept, new = self._lot.keep(tensor)
        self.moved += size * new
        if self._inputs_alone:  # the one that there is; what comes behind the block is not its own
            self._lot.close()
            self._within = False
        return kept, tensor.dtype, tensor.storage_offset(), tensor.size(), tensor.stride()


def _unpack(packed: Any) -> Tensor:
    if isinstance(packed, Tensor):
        return packed
    kept, dtype, *place = packed
    return torch.empty(0, dtype=dtype, device=kept.device).set_(kept.take().untyped_storage(), *place)


def _tensors(values: list[Any]) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (tuple, list)):
            yield from _tensors(list(value))


class _Lot:
    """What one block keeps of one micro-batch: whole storages, each once, however many views of it are saved."""

    def __init__(self, bus: _Bus, before: _Lot | None) -> None:
        self._bus, self._before = bus, before
        self._turn_came = False
        # Not held by the lot, which each of them holds: they go with the graph, whether it is gone backward or not.
        self._kept = list[weakref.ref[_Kept]]()
        # By address and number of writes, for as long as the tensors are held here: an address that is given back comes
        # again for another tensor.
        self._held = dict[tuple[int, int], tuple[Tensor, _Kept]]()

    def keep(self, tensor: Tensor) -> tuple[_Kept, bool]:
        """Send a tensor's storage on its way, and whether that was not done yet."""
        key = (tensor.untyped_storage().data_ptr(), tensor._version)
        if new := key not in self._held:
            kept = _Kept(self, self._bus, tensor)
            self._kept.append(weakref.ref(kept))
            self._held[key] = tensor, kept
        return self._held[key][1], new

    def close(self) -> None:
        """The block has run: its tensors may leave the device."""
        self._held = {}

    def take(self) -> None:
        """Its turn comes: all of it is there for what the present stream does next, and the block before's sent for."""
        if self._turn_came:
            return
        self._turn_came = True
        self.send_for()
        self._bus.arrive()
        if self._before is not None:
            self._before.send_for()
            self._before = None

    def send_for(self) -> None:
        """Begin to copy it back, once."""
        there, self._kept = self._kept, []
        for one in there:
            if (kept := one()) is not None:
                kept.fetch()


class _Kept:
    """A storage on the host, and on the device again once its lot is fetched; gone with the graph that saved it."""

    def __init__(self, lot: _Lot, bus: _Bus, tensor: Tensor) -> None:
        self.device, self._lot, self._bus = tensor.device, lot, bus
        self._host: Tensor | None = bus.out(_bytes_of(tensor.untyped_storage()))
        self._here: Tensor | None = None

    def fetch(self) -> None:
        assert self._host is not None
        self._here, self._host = self._bus.back(self._host), None

    def take(self) -> Tensor:
        """The bytes, for operations of the stream that asks."""
        self._lot.take()
        assert self._here is not None
        return self._here


class _Bus:
    """Copies of bytes to the host and back, in their order: none comes back before it has arrived.

    The device's memory is the present stream's from first to last. What a copy reads or writes is held here until that
    stream has been told to wait for the copy: whoever is given the memory next comes behind it. With `record_stream`
    the allocator would learn of that at some later look, and meanwhile give the next block new memory.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._leaving = deque[list[_Moved]]()  # by block
        self._coming = list[_Moved]()

    def begin_block(self) -> None:
        """Of what was sent to the host before, only what the last block sent is held any longer."""
        self.give_up(but=1)
        self._leaving.append([])

    def give_up(self, but: int = 0) -> None:
        """Hold no more of what was sent to the host, but for the last blocks'."""
        while len(self._leaving) > but:
            self._wait_for(self._leaving.popleft())

    def out(self, here: Tensor) -> Tensor:
        """A copy on the host, made behind what the present stream has been given to do."""
        if self._stream is None:
            return here.clone()
        host = torch.empty(here.numel(), dtype=torch.uint8, pin_memory=True)
        self._leaving[-1].append((here, self._copy(here, host)))
        return host

    def back(self, host: Tensor) -> Tensor:
        """Memory on the device that has the bytes when they have arrived (`arrive`)."""
        if self._stream is None:
            return host
        here = torch.empty(host.numel(), dtype=torch.uint8, device=self._device)
        self._coming.append((here, self._copy(host, here)))
        return here

    def arrive(self) -> None:
        """All that was sent for is there for what the present stream does next."""
        coming, self._coming = self._coming, []
        self._wait_for(coming)

    def _copy(self, source: Tensor, target: Tensor) -> Any:
        assert self._stream is not None
        # Behind what the present stream was given: the source's making, or the use of the target's memory until now.
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream):
            target.copy_(source, non_blocking=True)
            return self._stream.record_event()

    def _wait_for(self, moved: Sequence[_Moved]) -> None:
        for _, done in moved:
            torch.cuda.current_stream(self._device).wait_event(done)


def _bytes_of(storage: torch.UntypedStorage) -> Tensor:
    return torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)
