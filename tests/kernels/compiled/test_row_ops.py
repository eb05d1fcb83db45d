"""The kernels of norms and gates as machine code at training's shapes: nothing spilt, wide loads and stores."""

import re
from collections.abc import Callable
from functools import cache

import pytest
import torch
from torch import Tensor

from synpro_kernels.common.launch import Call
from synpro_kernels.ops.row_ops.op import WIDEST
from synpro_kernels.ops.row_ops.triton_backend import (
    gate_call,
    gate_gradient_call,
    norm_call,
    norm_gradient_call,
    rotary_call,
)
from synpro_kernels.testing.compile_only import Compiled, compile_call, compile_for
from tests.kernels.compiled.budget import registers, spills_nothing

TOKENS = 8192


def meta(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def norm(width: int, dtype: torch.dtype = torch.bfloat16) -> Call:
    return norm_call(meta(TOKENS, width, dtype=dtype), meta(width, dtype=dtype), 1e-6)


def norm_gradient(width: int, dtype: torch.dtype = torch.bfloat16) -> Call:
    x = meta(TOKENS, width, dtype=dtype)
    return norm_gradient_call(x, x, meta(width, dtype=dtype), 1e-6)


def turn(heads: int, width: int) -> Call:
    angle = meta(1024, 1, width, dtype=torch.float32)
    return rotary_call(meta(1024, 8, heads, 3 * width)[..., :width], angle, angle)


# A head of Qwen3, OLMo-2 1B, Llama 3.1 8B, and the widest row there is.
CASES: dict[str, Callable[[], Call]] = {
    "norm, head": lambda: norm(128),
    "norm, 1B": lambda: norm(2048),
    "norm, 8B": lambda: norm(4096),
    "norm, widest, fp32": lambda: norm(WIDEST, torch.float32),
    "norm's gradient, head": lambda: norm_gradient(128),
    "norm's gradient, 1B": lambda: norm_gradient(2048),
    "norm's gradient, 8B": lambda: norm_gradient(4096),
    "norm's gradient, widest, fp32": lambda: norm_gradient(WIDEST, torch.float32),
    "turn, 1B": lambda: turn(16, 128),
    "turn, Qwen3": lambda: turn(32, 128),
    "gate, 8B": lambda: gate_call(meta(TOKENS, 2 * 14336)),
    "gate's gradient, 8B": lambda: gate_gradient_call(meta(TOKENS, 14336), meta(TOKENS, 2 * 14336)),
}


@cache
def compiled(case: str, capability: int) -> Compiled:
    with compile_for(capability):
        return compile_call(CASES[case]())


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("capability", [80, 90, 100])
def test_kernels_spill_nothing_and_fit_a_multiprocessor(case: str, capability: int):
    found = compiled(case, capability).resources
    assert spills_nothing(found)
    # Of 65,536 registers; a program has at most 512 threads, and but for the widest at most 128 of them.
    assert found.registers <= registers(128), found.registers


@pytest.mark.parametrize("case", CASES)
def test_numbers_come_and_go_sixteen_bytes_at_a_time(case: str):
    sass = compiled(case, 90).sass
    assert re.search(r"\bLDG\.E\.[A-Z.]*128", sass) and re.search(r"\bSTG\.E\.[A-Z.]*128", sass)
