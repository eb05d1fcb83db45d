"""Tests of Triton kernels: launched on a GPU where there is one, else on CPU tensors under `TRITON_INTERPRET=1`.

Interpreting needs a process of its own, because Triton decides at decoration whether a kernel is interpreted. Where
neither is possible the modules of this directory are skipped before they are imported. Tensors are made on the device
that is tested, and uninitialised ones are NaN, so an output that a kernel forgot to write fails its test.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from synpro_kernels.common.triton_status import triton_status
from synpro_kernels.testing import nan_filled_empty

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
_USABLE, _WHY = triton_status()
if not _USABLE:
    REASON = f"{_WHY}; `make setup-test` installs it where it has a build for the platform"
elif not INTERPRETED and not torch.cuda.is_available():
    REASON = "no CUDA device: run with TRITON_INTERPRET=1; make test does"
else:
    REASON = ""
if INTERPRETED and not REASON:
    from synpro_kernels.testing.interpreter import install

    install()


class Skipped(pytest.Module):
    def collect(self):
        pytest.skip(REASON, allow_module_level=True)


def pytest_pycollect_makemodule(module_path: Path, parent: pytest.Collector) -> pytest.Module | None:
    return Skipped.from_parent(parent, path=module_path) if REASON else None


@pytest.fixture(autouse=True)
def uninitialised_is_nan_on_the_device() -> Iterator[None]:
    with torch.device("cpu" if INTERPRETED else "cuda"), nan_filled_empty():
        yield
