"""Runs a test of an op on every path it can take here: compiled and plain PyTorch on the CPU, and on a GPU.

Where a test takes `implementation`, `path` or `device`, its tensors are made on that path's device, because
torch.device is a context there; uninitialised ones are NaN, so an output that was forgotten fails its test.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from synpro_kernels.common.extension import csrc_status
from synpro_kernels.ops.grad_dot import op, prefix
from synpro_kernels.ops.linear_logprob import forward
from synpro_kernels.testing import nan_filled_empty

PATHS = ["csrc", "torch", "cuda"]


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


@pytest.fixture(params=PATHS)
def implementation(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Of linear_logprob. On CUDA the op chooses, so that what users get is what is tested."""
    if request.param != "cuda":
        monkeypatch.setattr(forward, "implementation_for", lambda hidden: request.param)
    with placed(request.param):
        yield request.param


@pytest.fixture(params=PATHS)
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Of grad_dot and the prefix."""
    if request.param != "cuda":
        for module in (op, prefix):
            monkeypatch.setattr(module, "use_csrc", lambda x: request.param == "csrc" and x.dtype != torch.float64)
    with placed(request.param):
        yield request.param
