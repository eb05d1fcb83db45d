"""The symmetric product's kernel as machine code at production sizes: the right instruction, nothing spilt, it fits.

Register budgets are what Triton 3.6 needs and a little more, so that a growth is seen and asked about.
"""

import re
from collections.abc import Callable
from functools import cache

import pytest
import torch
from torch import Tensor

from synpro_kernels.common.launch import Call
from synpro_kernels.ops.newton_schulz.tiles import symmetric_tile
from synpro_kernels.ops.newton_schulz.triton_symmetric import symmetric_call
from synpro_kernels.testing.compile_only import (
    TENSOR_MEMORY_LIMIT,
    Compiled,
    compile_call,
    compile_for,
)
from tests.kernels.compiled.budget import registers, shared_bytes, spills_nothing

INSTRUCTION = {80: "HMMA", 90: "HGMMA", 100: "UTCHMMA"}


def bf16(*shape: int) -> Tensor:
    return torch.empty(shape, dtype=torch.bfloat16, device="meta")


def gram(capability: int, rows: int = 4096, width: int = 14336, *, wide: bool = False) -> Call:
    return symmetric_call(bf16(8, rows, width), None, 1.0, 0.0, wide, capability=capability)


def squared(capability: int, rows: int = 4096) -> Call:
    factor = bf16(8, rows, rows)
    return symmetric_call(factor, factor, 2.0315, -4.775, False, capability=capability)


# What is compiled, and the registers it may take on sm_80, sm_90 and sm_100.
CASES: dict[str, tuple[Callable[[int], Call], tuple[int, int, int]]] = {
    "X X^T": (gram, (136, 96, 104)),
    "X X^T, fp32": (lambda c: gram(c, wide=True), (168, 112, 160)),
    "b G + c G G": (squared, (136, 128, 216)),
    "X X^T, short side": (lambda c: gram(c, 256, 1024), (136, 64, 56)),
    "b G + c G G, short side": (lambda c: squared(c, 256), (128, 64, 96)),
}
CASE = pytest.mark.parametrize("case", CASES)
CAPABILITY = pytest.mark.parametrize("capability", [80, 90, 100])


@cache
def compiled(case: str, capability: int) -> Compiled:
    return compiled_call(CASES[case][0](capability), capability)


def compiled_call(call: Call, capability: int) -> Compiled:
    with compile_for(capability):
        return compile_call(call)


@CAPABILITY
@CASE
def test_kernels_fit_spill_nothing_and_use_the_matrix_instruction(case: str, capability: int):
    found = compiled(case, capability).resources
    assert spills_nothing(found)
    assert found.shared_bytes <= shared_bytes(capability)
    assert found.tensor_memory_columns <= TENSOR_MEMORY_LIMIT
    assert found.registers <= registers(CASES[case][1][(80, 90, 100).index(capability)]), found.registers
    assert set(found.matrix_instructions) == {INSTRUCTION[capability]}


@CASE
def test_operands_come_by_tma_on_sm_90_and_by_asynchronous_copies_on_sm_80(case: str):
    hopper, ampere = (compiled(case, capability).resources.opcodes for capability in (90, 80))
    assert hopper["UTMALDG"] > 0 and hopper["LDGSTS"] == 0
    assert ampere["LDGSTS"] > 0


@CASE
def test_wgmma_is_issued_back_to_back_on_sm_90(case: str):
    """ptxas may serialise them (its note C7515), which no resource shows: a wait after each, and half the speed."""
    order = re.findall(r"\b(HGMMA|WARPGROUP\.DEPBAR)", compiled(case, 90).sass)
    runs = [len(run) for run in "".join("H" if name == "HGMMA" else "w" for name in order).split("w") if run]
    assert runs and min(runs) >= 2, runs


@CAPABILITY
def test_both_the_tile_and_its_mirror_are_stored_in_wide_words(capability: int):
    assert len(re.findall(r"\bSTG\.E\.128\b", compiled("X X^T", capability).sass)) >= 2


@pytest.mark.parametrize("capability", [80, 90])
def test_sides_of_no_whole_tile_spill_nothing_either(capability: int):
    for rows in (100, 1000):
        found = compiled_call(gram(capability, rows, 1000), capability).resources
        assert found.stack_bytes == 0 and found.opcodes["UTMALDG"] + found.opcodes["LDGSTS"] > 0


def test_half_of_the_tiles_are_computed():
    call = gram(90)
    side = 4096 // symmetric_tile(90, 4096).BM
    assert call.grid == (8 * side * (side + 1) // 2,)


def test_families_without_a_tile_of_their_own_take_the_smallest():
    for rows in (64, 4096):
        assert symmetric_tile(86, rows) == symmetric_tile(80, rows) == symmetric_tile(120, rows)
        assert symmetric_tile(103, rows) == symmetric_tile(100, rows)
