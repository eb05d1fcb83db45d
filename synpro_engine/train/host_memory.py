"""A copy on the host of tensors that go on changing, so that they can be written while training goes on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from synpro_engine.config import UserError

_ALIGNED_BYTES = 64  # where a copy begins, for any dtype and for whole lines of the cache


class HostMemory:
    """One buffer, as large as what it was last given to hold, and kept: pages of a new one would be cleared each time.

    Pinned where the tensors are on a GPU, so that the copy goes at the bus's speed.
    """

    def __init__(self, what: str = "checkpoints") -> None:
        """`what` is held, for messages."""
        self._what = what
        self._buffer = torch.empty(0, dtype=torch.uint8)
        self._pinned = False
        self._cuda: Any = torch.cuda.cudart() if torch.cuda.is_available() else None

    def copies(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """What `tensors` hold now, on the host; the copies of the call before are overwritten. Waits for the device.

        Raises UserError where the system does not let so much memory be pinned.
        """
        ends, size = [], 0
        for tensor in tensors:
            size += -(-tensor.nbytes // _ALIGNED_BYTES) * _ALIGNED_BYTES
            ends.append(size)
        on_gpu = any(tensor.is_cuda for tensor in tensors)
        self._make_room(size, pin=on_gpu)
        found = []
        for tensor, first in zip(tensors, [0, *ends], strict=False):
            copy = self._buffer[first : first + tensor.nbytes].view(tensor.dtype).view(tensor.shape)
            found.append(copy.copy_(tensor, non_blocking=on_gpu))
        if on_gpu:
            torch.cuda.current_stream().synchronize()
        return found

    def _make_room(self, size: int, *, pin: bool) -> None:
        if self._buffer.numel() == size:
            return
        self.release()
        self._buffer = torch.empty(size, dtype=torch.uint8)
        if pin and size:
            # Not `pin_memory`, whose allocator takes the next power of two: up to twice the memory.
            error = self._cuda.cudaHostRegister(self._buffer.data_ptr(), size, 0)
            if int(error):
                raise UserError(f"{size / 2**30:.1f} GiB of host memory for {self._what} cannot be pinned ({error})")
            self._pinned = True

    def release(self) -> None:
        """Give the memory back; copies must not be read any more."""
        if self._pinned:
            self._cuda.cudaHostUnregister(self._buffer.data_ptr())
            self._pinned = False
        self._buffer = torch.empty(0, dtype=torch.uint8)
