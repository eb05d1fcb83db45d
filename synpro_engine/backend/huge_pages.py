"""Huge pages for memory that is read from end to end again and again: a CPU then finds its pages without looking long.

Linux gives them to a program that asks, as most distributions set it up, and neither torch nor its allocator asks by
default. Contents and addresses stay as they are.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterable

from torch import Tensor

PAGE_BYTES = 2 << 20
"""Of x86-64, and of most others that Linux runs on."""
# From Linux's uapi/asm-generic/mman-common.h: a range is to be kept in huge pages, and what is there already is to be
# moved into some now (since Linux 6.1; before, a kernel thread does so in its own time).
_HUGE, _COLLAPSE = 14, 25


def ask_for_huge_pages(tensors: Iterable[Tensor]) -> int:
    """Ask for the whole huge pages within the memory of these tensors; returns their bytes, 0 but on Linux' CPUs.

    It is a wish: a kernel that does not know it, or has none left, goes on as before.
    """
    if sys.platform != "linux":
        return 0
    madvise = ctypes.CDLL(None).madvise
    madvise.argtypes = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
    asked = 0
    for start, end in {_whole_pages(tensor) for tensor in tensors if tensor.device.type == "cpu"}:
        if start < end and madvise(start, end - start, _HUGE) == 0:
            madvise(start, end - start, _COLLAPSE)
            asked += end - start
    return asked


def _whole_pages(tensor: Tensor) -> tuple[int, int]:
    storage = tensor.untyped_storage()
    start = storage.data_ptr()
    return -(-start // PAGE_BYTES) * PAGE_BYTES, (start + storage.nbytes()) // PAGE_BYTES * PAGE_BYTES
