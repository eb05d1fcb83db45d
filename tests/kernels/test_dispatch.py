"""Which backend an op takes: by device, dtype and what is there, from its table and nowhere else."""

import pytest
import torch
from torch._subclasses import FakeTensorMode

from synpro_kernels.common import dispatch
from synpro_kernels.common.dispatch import Backends
from synpro_kernels.ops.decode_attention.dispatch import ATTEND
from synpro_kernels.ops.draw_tokens.op import DRAW
from synpro_kernels.ops.grad_dot.dispatch import FORMED, GRAD_DOT, PAIRS, PREFIX, SEGMENT_SUM
from synpro_kernels.ops.linear_logprob.dispatch import LINEAR_LOGPROB
from synpro_kernels.ops.newton_schulz.dispatch import SYMMETRIC
from synpro_kernels.ops.skinny_linear.dispatch import SKINNY
from synpro_kernels.testing import using

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32, "fp64": torch.float64}
ON_CPU = {
    LINEAR_LOGPROB: {"csrc": "bf16 fp16 fp32"},
    GRAD_DOT: {"csrc": "bf16 fp16 fp32"},
    PREFIX: {"csrc": "bf16 fp16 fp32"},
    PAIRS: {},
    SEGMENT_SUM: {},
    FORMED: {"csrc": "fp32"},
    SYMMETRIC: {},
    SKINNY: {"csrc": "bf16 fp32"},
    DRAW: {"csrc": "fp32"},
    ATTEND: {"csrc": "bf16 fp32"},
}
ON_AMPERE = {
    LINEAR_LOGPROB: {"triton": "bf16 fp16 fp32"},
    GRAD_DOT: {"triton": "bf16 fp16"},
    PREFIX: {"triton": "bf16 fp16"},
    PAIRS: {"triton": "bf16 fp16"},
    SEGMENT_SUM: {"triton": "fp32"},
    FORMED: {},
    SYMMETRIC: {"triton": "bf16 fp16"},
    SKINNY: {},
    DRAW: {},
    ATTEND: {"triton": "bf16 fp16"},
}
ON_TURING = {backends: {"triton": "fp32"} if backends is SEGMENT_SUM else {} for backends in ON_CPU}


@pytest.fixture
def everything_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "csrc_loaded", lambda: True)
    monkeypatch.setattr(dispatch, "triton_status", lambda: (True, ""))


def chosen(backends: Backends, device: str, dtype: torch.dtype) -> str:
    with FakeTensorMode():
        return backends.choose(torch.empty(2, 2, device=device, dtype=dtype))


def expected(served: dict[str, str], dtype: str) -> str:
    return next((name for name, dtypes in served.items() if dtype in dtypes.split()), "torch")


@pytest.mark.usefixtures("everything_is_there")
@pytest.mark.parametrize(
    ("device", "capability", "served"),
    [("cpu", 0, ON_CPU), ("cuda", 80, ON_AMPERE), ("cuda", 103, ON_AMPERE), ("cuda", 75, ON_TURING), ("meta", 0, {})],
    ids=["cpu", "sm_80", "sm_103", "sm_75", "another device"],
)
def test_device_and_dtype_decide(monkeypatch, device, capability, served):
    monkeypatch.setattr(dispatch, "capability_of", lambda tensor: capability)
    for backends in ON_CPU:
        for name, dtype in DTYPES.items():
            assert chosen(backends, device, dtype) == expected(served.get(backends, {}), name), (backends, name)


@pytest.mark.usefixtures("everything_is_there")
def test_what_is_not_there_is_not_chosen(monkeypatch):
    monkeypatch.setattr(dispatch, "capability_of", lambda tensor: 90)
    monkeypatch.setattr(dispatch, "csrc_loaded", lambda: False)
    assert chosen(GRAD_DOT, "cpu", torch.float32) == "torch"
    assert chosen(GRAD_DOT, "cuda", torch.bfloat16) == "triton"
    monkeypatch.setattr(dispatch, "triton_status", lambda: (False, "missing"))
    assert chosen(GRAD_DOT, "cuda", torch.bfloat16) == chosen(SEGMENT_SUM, "cuda", torch.float32) == "torch"


@pytest.mark.usefixtures("everything_is_there")
def test_amd_gpus_take_no_tiles_that_are_made_for_nvidias(monkeypatch):
    monkeypatch.setattr(dispatch, "capability_of", lambda tensor: 94)
    monkeypatch.setattr(torch.version, "hip", "6.2")
    assert chosen(GRAD_DOT, "cuda", torch.bfloat16) == chosen(LINEAR_LOGPROB, "cuda", torch.bfloat16) == "torch"


@pytest.mark.usefixtures("everything_is_there")
def test_every_tensor_must_be_of_a_dtype_that_the_backend_takes():
    gradient, direction = torch.empty(3), torch.empty(2, 3)
    assert FORMED.choose(gradient, direction) == "csrc"
    assert FORMED.choose(gradient, direction.bfloat16()) == FORMED.choose(gradient.half(), direction) == "torch"


def test_under_test_an_op_without_the_backend_takes_pytorch():
    half, single = torch.empty(1, dtype=torch.bfloat16), torch.empty(1)
    with using("triton"):
        assert GRAD_DOT.choose(half) == PAIRS.choose(half) == "triton"
        assert GRAD_DOT.choose(single) == FORMED.choose(half) == "torch"
    with using("torch"):
        assert GRAD_DOT.choose(half) == LINEAR_LOGPROB.choose(single) == "torch"
    with pytest.raises(KeyError, match="csrc"):
        PAIRS.named("csrc")
