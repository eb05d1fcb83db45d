"""Huge pages: of 2 MiB a CPU needs few where it would look up thousands of 4 KiB, and finds what it reads at once.

Linux gives them to a program that asks, as most distributions set it up, and neither torch nor its allocator asks by
default. Contents and addresses stay as they are.
"""

from __future__ import annotations

import ctypes
import os
import platform
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # a program asks before it loads torch
    from torch import Tensor

VARIABLE, TUNABLE = "GLIBC_TUNABLES", "glibc.malloc.hugetlb=1"
"""What makes glibc (since 2.35) ask for them, for all that a program allocates."""
PAGE_BYTES = 2 << 20
"""Of x86-64, and of most others that Linux runs on."""
# From Linux's uapi/asm-generic/mman-common.h: a range is to be kept in huge pages, and what is there already is to be
# moved into some now (since Linux 6.1; before, a kernel thread does so in its own time).
_HUGE, _COLLAPSE = 14, 25


def start_with_huge_pages() -> None:
    """Start this very program again with them, unless its allocator was set up by others or a GPU computes.

    The C library reads its settings when a program starts, so this is for a program's first lines: the process id, the
    arguments and open files stay, and nothing that ran before does. No effect but with glibc.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    given = os.environ.get(VARIABLE, "")
    if "glibc.malloc." in given or Path("/dev/nvidiactl").exists():
        return
    os.environ[VARIABLE] = f"{given}:{TUNABLE}" if given else TUNABLE
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


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
