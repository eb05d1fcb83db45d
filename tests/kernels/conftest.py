"""Runs a test once per CPU implementation of an op: the compiled one where it was built, and the PyTorch one."""

import pytest

from synpro_kernels.extension import csrc_status
from synpro_kernels.linear_logprob import forward


@pytest.fixture(params=["csrc", "torch"])
def implementation(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    loaded, reason = csrc_status()
    if request.param == "csrc" and not loaded:
        pytest.skip(f"csrc: {reason}")
    monkeypatch.setattr(forward, "implementation_for", lambda hidden: request.param)
    return request.param
