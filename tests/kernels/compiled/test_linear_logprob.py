"""linear_logprob's Triton kernels as machine code at production sizes: the right instructions, nothing spilt."""

import pytest
import torch

from synpro_kernels.common.launch import Call, ceil_div
from synpro_kernels.ops.linear_logprob import triton_gemm, triton_rows
from synpro_kernels.ops.linear_logprob.dispatch import LINEAR_LOGPROB
from synpro_kernels.ops.linear_logprob.tiles import tile_for, tiles_each_for
from synpro_kernels.ops.linear_logprob.types import LogitSettings, Shard, Stats
from synpro_kernels.testing.compile_only import TENSOR_MEMORY_LIMIT, Compiled, compile_call, compile_for
from tests.kernels.compiled.budget import registers, shared_bytes, spills_nothing

TOKENS, WIDTH, VOCAB, BLOCK = 8192, 4096, 131072, 16384
MATRIX_INSTRUCTION = {80: "HMMA", 90: "HGMMA", 100: "UTCHMMA"}
# Registers of a thread. Eight warps may have 255 each with one block on a processor, which is what the tiles are for;
# the budgets are what was reached, so that a change which costs registers is seen.
BUDGET = {
    (80, False, "stats"): 224, (80, False, "gradient"): 168,
    (90, False, "stats"): 255, (90, False, "gradient"): 255,
    (90, True, "stats"): 176, (90, True, "gradient"): 255,
    (100, False, "stats"): 255, (100, False, "gradient"): 168,
    (100, True, "stats"): 255, (100, True, "gradient"): 176,
}  # fmt: skip
ELSEWHERE = 32
"""Bytes that Triton 3.7 and 3.8 put away where a thread has all of its registers: an address or a few."""


def meta(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def production_call(kernel: str, capability: int, descriptor: bool | None, *, width: int = WIDTH, **changed) -> Call:
    settings = LogitSettings(temperature=1.0, softcap=changed.get("softcap"), ignore_index=-100, vocab_start=0)
    shard = Shard(
        hidden_TH=meta(TOKENS, width),
        weight_VH=meta(VOCAB, width),
        bias_V=meta(VOCAB) if changed.get("bias") else None,
        column_T=meta(TOKENS, dtype=torch.int64),
        settings=settings,
        kernels=LINEAR_LOGPROB.named("triton"),
    )
    if kernel == "stats":
        return triton_gemm.stats_call(shard, entropy=True, capability=capability, processors=132, descriptor=descriptor)
    bias = None if shard.bias_V is None else shard.bias_V[:BLOCK]
    operands = shard.weight_VH[:BLOCK], bias, meta(TOKENS, 5, dtype=torch.float32), 0, meta(TOKENS, BLOCK)
    return triton_gemm.gradient_call(shard, *operands, capability=capability, descriptor=descriptor)


def compiled(call: Call, capability: int) -> Compiled:
    with compile_for(capability):
        return compile_call(call)


@pytest.mark.parametrize(("capability", "descriptor", "kernel"), BUDGET)
def test_production_kernels_use_the_matrix_units_and_spill_nothing(capability, descriptor, kernel):
    found = compiled(production_call(kernel, capability, descriptor), capability).resources
    assert set(found.matrix_instructions) == {MATRIX_INSTRUCTION[capability]}
    assert spills_nothing(found, ELSEWHERE)
    assert found.registers <= registers(BUDGET[capability, descriptor, kernel])
    assert found.shared_bytes <= shared_bytes(capability)
    assert found.tensor_memory_columns <= TENSOR_MEMORY_LIMIT
    loads = "UTMALDG" if descriptor else "LDGSTS"  # the tensor copy unit, or asynchronous copies past the registers
    assert found.opcodes[loads] > 0


@pytest.mark.parametrize(("width", "mapped"), [(4096, True), (120, False), (33, True)])
@pytest.mark.parametrize("capability", MATRIX_INSTRUCTION)
def test_soft_caps_biases_and_odd_widths_spill_nothing_either(capability, width, mapped):
    for kernel in ("stats", "gradient"):
        changed = {"softcap": 30.0, "bias": True} if mapped else {}
        call = production_call(kernel, capability, None, width=width, **changed)
        found = compiled(call, capability).resources
        assert set(found.matrix_instructions) == {MATRIX_INSTRUCTION[capability]}
        assert spills_nothing(found, ELSEWHERE)
        assert found.shared_bytes <= shared_bytes(capability)


def test_families_without_a_tile_of_their_own_take_the_smallest():
    assert tile_for(86, torch.bfloat16, TOKENS) == tile_for(80, torch.bfloat16, TOKENS)
    assert tile_for(103, torch.bfloat16, TOKENS) == tile_for(100, torch.bfloat16, TOKENS)
    assert tile_for(120, torch.bfloat16, TOKENS) == tile_for(80, torch.bfloat16, TOKENS)


@pytest.mark.parametrize("capability", MATRIX_INSTRUCTION)
def test_row_kernels_spill_nothing(capability):
    settings = LogitSettings(temperature=1.0, softcap=None, ignore_index=-100, vocab_start=0)
    block, column = meta(1024, VOCAB, dtype=torch.float32), meta(1024, dtype=torch.int64)
    stats = Stats(*(meta(1024, dtype=torch.float32) for _ in range(4)))
    coefficients = meta(1024, 5, dtype=torch.float32)
    merged = compiled(triton_rows.merge_call(block, stats, column, 0, settings), capability)
    call = triton_rows.differentiate_call(block, coefficients, column, 0, settings, torch.bfloat16)
    differentiated = compiled(call, capability)
    for found in (merged.resources, differentiated.resources):
        assert spills_nothing(found)
    assert "LDG.E.128" in differentiated.sass and "STG.E" in differentiated.sass


@pytest.mark.parametrize("processors", [108, 132, 148])
def test_no_wave_of_programs_leaves_many_processors_idle(processors):
    """The time is that of waves x tiles: within 10 % of what it would be if work could be cut at will."""
    for row_tiles in range(8, 600):
        tiles = tiles_each_for(row_tiles, 512, processors)
        waves = ceil_div(row_tiles * ceil_div(512, tiles), processors)
        assert waves * tiles * processors <= 1.1 * row_tiles * 512, row_tiles


def test_the_workspace_of_the_forward_is_a_few_megabytes():
    call = production_call("stats", 90, True)
    assert sum(part.numel() * part.element_size() for part in call.outputs) <= 8 << 20
    assert call.grid[0] <= 2 * 132
