"""The C library's allocator as a program wants it that computes on the CPU: it keeps what was freed, in huge pages.

As it comes, glibc maps a tensor of some megabytes when it is made and gives it back when it is freed, so that a
training step begins by having the kernel find and clear hundreds of thousands of small pages, and then looks each of
them up again and again. Peaks of memory stay as they are: what is freed is used again.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

VARIABLE = "GLIBC_TUNABLES"
TUNABLES = f"glibc.malloc.hugetlb=1:glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold={1 << 40}"
"""Huge pages by madvise (since glibc 2.35), every block from the heap, and the heap's end is not given back."""


def keep_freed_memory() -> None:
    """Start this very program again with that allocator, unless it has one chosen for it or a GPU computes.

    The C library reads its settings when a program starts, so this is for a program's first lines: the process id, the
    arguments and open files stay, and nothing that ran before does. No effect but on Linux with glibc.
    """
    if sys.platform != "linux" or not (os.confstr("CS_GNU_LIBC_VERSION") or "").startswith("glibc"):
        return
    given = os.environ.get(VARIABLE, "")
    if "glibc.malloc." in given or Path("/dev/nvidiactl").exists():
        return
    os.environ[VARIABLE] = f"{given}:{TUNABLES}" if given else TUNABLES
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
