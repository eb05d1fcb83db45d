"""Runs a test once per CPU implementation of an op: the compiled one where it was built, and the PyTorch one."""

import pytest

import synpro_kernels.linear_logprob.forward as linear_logprob_forward
from synpro_kernels.extension import csrc_status


@pytest.fixture(params=["csrc", "chunked"])
def implementation(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    loaded, reason = csrc_status()
    if request.param == "csrc" and not loaded:
        pytest.skip(f"csrc: {reason}")
    monkeypatch.setattr(linear_logprob_forward, "csrc_loaded", lambda: request.param == "csrc")
    return request.param
