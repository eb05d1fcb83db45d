"""What every test process needs before anything else: one thread, and the engine's import hook.

Importing the engine first installs the CPU shim, so that any later `import megatron...` sees it. One thread per process
keeps multi-process tests from fighting for cores; it is set before torch is loaded and inherited by spawned ranks.
"""

import gc
import os
from collections.abc import Iterator
from pathlib import Path

for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "TOKENIZERS_PARALLELISM"):
    os.environ[_name] = "false" if _name == "TOKENIZERS_PARALLELISM" else "1"
os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")

import pytest
import torch

import synpro_engine  # noqa: F401

torch.set_num_threads(1)
_MANY = 200  # threads: those of about four jobs


@pytest.fixture(autouse=True)
def _free_ended_jobs() -> Iterator[None]:
    """Each group of an ended job wakes its thread a hundred times a second until the garbage collector finds it."""
    yield
    if len(list(Path("/proc/self/task").iterdir())) > _MANY:
        gc.collect()
