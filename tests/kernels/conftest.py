"""Runs a test of an op on every path it can take here: compiled and plain PyTorch on the CPU, and on a GPU.

Where a test takes `backend` or `device`, its tensors are made on that device, because torch.device is a context there;
uninitialised ones are NaN, so an output that was forgotten fails its test.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import pytest
import torch

from synpro_kernels.common.extension import csrc_status
from synpro_kernels.testing import nan_filled_empty, using


@contextmanager
def placed(path: str) -> Iterator[None]:
    """Make tensors on the device of `path`; skip where it is not there, with the reason."""
    loaded, reason = csrc_status()
    if path == "csrc" and not loaded:
        pytest.skip(f"csrc: {reason}")
    if path == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    with torch.device("cuda" if path == "cuda" else "cpu"), nan_filled_empty():
        yield


@pytest.fixture(params=["cpu", "cuda"])
def device(request: pytest.FixtureRequest) -> Iterator[str]:
    """The device alone: for ops whose CPU path is always the same."""
    with placed(request.param):
        yield request.param


@pytest.fixture(params=["csrc", "torch", "cuda"])
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each path of an op. On CUDA the op chooses, so that what users get is what is tested."""
    with placed(request.param), nullcontext() if request.param == "cuda" else using(request.param):
        yield request.param
