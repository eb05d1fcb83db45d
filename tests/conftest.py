"""What every test process needs before anything else: one thread, and the engine's import hook.

Importing the engine first installs the CPU shim, so that any later `import megatron...` sees it. One thread per process
keeps multi-process tests from fighting for cores; it is set before torch is loaded and inherited by spawned ranks.
"""

import gc
import os
from collections.abc import Iterator

for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "TOKENIZERS_PARALLELISM"):
    os.environ[_name] = "false" if _name == "TOKENIZERS_PARALLELISM" else "1"
os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")

import pytest
import torch

import synpro_engine  # noqa: F401

torch.set_num_threads(1)
_MANY = 150  # threads: those of about three jobs
_held = 0  # threads that the last collection could not free, as where an exception that is kept holds a job


@pytest.fixture(scope="module", autouse=True)
def _leave_modules_to_themselves() -> None:
    """Have the garbage collector pass over what was there before: mostly code, a second's work each time by the end."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _free_ended_jobs() -> Iterator[None]:
    """Each group of an ended job wakes its thread a hundred times a second until the garbage collector finds it."""
    yield
    global _held
    threads = len(os.listdir("/proc/self/task"))
    _held = min(_held, threads)
    if threads > _held + _MANY:
        gc.collect()
        _held = len(os.listdir("/proc/self/task"))
