"""grad_dot's Triton kernels as machine code at production sizes: the right matrix instruction, nothing spilt, it fits.

Register budgets are what Triton 3.6 needs and a little more, so that a growth is seen and asked about.
"""

import re
from collections.abc import Callable
from functools import cache

import pytest
import torch
from torch import Tensor

from synpro_kernels.common.launch import Call
from synpro_kernels.ops.grad_dot.triton_pairs import pair_call
from synpro_kernels.ops.grad_dot.triton_prefix import prefix_call
from synpro_kernels.ops.grad_dot.triton_rows import row_dot_call
from synpro_kernels.ops.grad_dot.triton_segments import segment_sum_call
from synpro_kernels.testing.compile_only import (
    TENSOR_MEMORY_LIMIT,
    Compiled,
    compile_call,
    compile_for,
)
from tests.kernels.compiled.budget import registers, shared_bytes, spills_nothing

TOKENS, WIDTH, VOCAB = 16384, 4096, 131072
INSTRUCTION = {80: "HMMA", 90: "HGMMA", 100: "UTCHMMA"}


def bf16(*shape: int) -> Tensor:
    return torch.empty(shape, dtype=torch.bfloat16, device="meta")


def rows(
    capability: int, *, over_inputs: bool, tokens: int = TOKENS, outputs: int = WIDTH, directions: int = 1
) -> Call:
    tensors = bf16(tokens, WIDTH), bf16(tokens, outputs), bf16(directions, outputs, WIDTH)
    return row_dot_call(*tensors, over_inputs, capability=capability)


def pairs(capability: int, *, segments: int) -> Call:
    ids = torch.empty(4096, dtype=torch.int64, device="meta")
    return pair_call(bf16(4096, WIDTH), bf16(4096, WIDTH), ids, segments, capability=capability)


def prefix(capability: int, *, directions: int = 1, dtype: torch.dtype = torch.bfloat16) -> Call:
    direction, total = bf16(directions, WIDTH, WIDTH).to(dtype), bf16(WIDTH, WIDTH).float()
    boundaries = list(range(0, TOKENS + 1, 2048))
    tensors = bf16(TOKENS, WIDTH), bf16(TOKENS, WIDTH), direction, boundaries, total
    return prefix_call(*tensors, capability=capability)


# What is compiled, and the registers it may take on sm_80, sm_90 and sm_100.
CASES: dict[str, tuple[Callable[[int], Call], tuple[int, int, int]]] = {
    "V x": (lambda c: rows(c, over_inputs=True), (240, 168, 160)),
    "b V": (lambda c: rows(c, over_inputs=False), (248, 168, 160)),
    "V x, four directions": (lambda c: rows(c, over_inputs=True, directions=4), (240, 168, 160)),
    "b V, output layer": (lambda c: rows(c, over_inputs=False, outputs=VOCAB), (248, 168, 160)),
    "V x, few tokens": (lambda c: rows(c, over_inputs=True, tokens=32), (176, 104, 136)),
    "b V, few tokens": (lambda c: rows(c, over_inputs=False, tokens=32), (176, 104, 136)),
    "pairs": (lambda c: pairs(c, segments=8), (208, 208, 248)),
    "pairs, short segments": (lambda c: pairs(c, segments=64), (216, 128, 136)),
    "pairs, shortest segments": (lambda c: pairs(c, segments=1024), (80, 64, 64)),
    "prefix": (lambda c: prefix(c), (184, 192, 176)),
    "prefix, fp32 directions": (lambda c: prefix(c, directions=3, dtype=torch.float32), (224, 192, 176)),
}
CASE = pytest.mark.parametrize("case", CASES)
WIDE_CASE = pytest.mark.parametrize("case", [case for case in CASES if case != "pairs, shortest segments"])
CAPABILITY = pytest.mark.parametrize("capability", [80, 90, 100])


@cache
def compiled(case: str, capability: int) -> Compiled:
    return compiled_call(CASES[case][0](capability), capability)


def compiled_call(call: Call, capability: int) -> Compiled:
    with compile_for(capability):
        return compile_call(call)


@CAPABILITY
@CASE
def test_kernels_fit_and_spill_nothing(case: str, capability: int):
    found = compiled(case, capability).resources
    assert spills_nothing(found)
    assert found.shared_bytes <= shared_bytes(capability)
    assert found.tensor_memory_columns <= TENSOR_MEMORY_LIMIT
    budget = CASES[case][1][(80, 90, 100).index(capability)]
    assert found.registers <= registers(budget)


@CAPABILITY
@WIDE_CASE
def test_kernels_use_the_matrix_instruction_of_their_architecture(case: str, capability: int):
    assert set(compiled(case, capability).resources.matrix_instructions) == {INSTRUCTION[capability]}


@CAPABILITY
def test_tiles_too_small_for_it_still_use_tensor_cores(capability: int):
    assert set(compiled("pairs, shortest segments", capability).resources.matrix_instructions) == {"HMMA"}


@CASE
def test_operands_come_by_tma_on_sm_90_and_by_asynchronous_copies_on_sm_80(case: str):
    hopper, ampere = (compiled(case, capability).resources.opcodes for capability in (90, 80))
    assert hopper["UTMALDG"] > 0 and hopper["LDGSTS"] == 0
    assert ampere["LDGSTS"] > 0


@WIDE_CASE
def test_wgmma_is_issued_back_to_back_on_sm_90(case: str):
    """ptxas may serialise them (its note C7515), which no resource shows: a wait after each, and half the speed."""
    listing = compiled(case, 90).sass
    order = re.findall(r"\b(HGMMA|WARPGROUP\.DEPBAR)", listing)
    runs = [len(run) for run in "".join("H" if name == "HGMMA" else "w" for name in order).split("w") if run]
    assert runs and min(runs) >= 2, runs


@pytest.mark.parametrize("over_inputs", [True, False], ids=["V x", "b V"])
def test_the_large_tile_multiplies_at_wgmmas_full_width(over_inputs: bool):
    case = "V x" if over_inputs else "b V"
    assert "HGMMA.64x256x16.F32.BF16" in compiled(case, 90).sass


@pytest.mark.parametrize("capability", [80, 90, 100])
def test_segment_sums_spill_nothing(capability: int):
    values = torch.empty(3, TOKENS, device="meta")
    ids = torch.empty(TOKENS, dtype=torch.int64, device="meta")
    found = compiled_call(segment_sum_call(values, ids, 64), capability).resources
    assert found.stack_bytes == 0 and found.registers <= 136 and not found.opcodes["ATOMG"] + found.opcodes["RED"]


def test_widths_of_no_whole_tile_spill_nothing_either():
    for over_inputs in (True, False):
        for capability in (80, 90):
            tensors = bf16(2048, 1000), bf16(2048, 1000), bf16(1, 1000, 1000)
            found = compiled_call(row_dot_call(*tensors, over_inputs, capability=capability), capability).resources
            assert found.stack_bytes == 0 and found.opcodes["UTMALDG"] + found.opcodes["LDGSTS"] > 0
