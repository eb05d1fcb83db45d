"""Runs a test once per CPU implementation of an op: the compiled one where it was built, and the PyTorch one.

Uninitialised tensors are NaN in those tests, so an output that was forgotten fails its test.
"""

from collections.abc import Iterator

import pytest

from synpro_kernels.extension import csrc_status
from synpro_kernels.linear_logprob import forward
from synpro_kernels.testing import nan_filled_empty


@pytest.fixture(params=["csrc", "torch"])
def implementation(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    loaded, reason = csrc_status()
    if request.param == "csrc" and not loaded:
        pytest.skip(f"csrc: {reason}")
    monkeypatch.setattr(forward, "implementation_for", lambda hidden: request.param)
    with nan_filled_empty():
        yield request.param
