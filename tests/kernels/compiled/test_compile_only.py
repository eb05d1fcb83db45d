"""What compile_for and compile_kernel report is what is in the machine code, and they leave no trace in the process.

Shape suffixes: M, N, K of x_MK . w_NK^T.
"""

import pytest
import torch
import triton
import triton.language as tl
from triton.runtime import driver
from triton.tools.tensor_descriptor import TensorDescriptor

from synpro_kernels.testing.compile_only import (
    SHARED_LIMIT,
    TENSOR_MEMORY_LIMIT,
    Compiled,
    compile_for,
    compile_kernel,
)
from tests.kernels.compiled.budget import shared_bytes


@triton.jit
def matmul_kernel(x_ptr, w_ptr, out_ptr, N, K, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr):
    m = tl.program_id(0) * BM + tl.arange(0, BM)
    n = tl.program_id(1) * BN + tl.arange(0, BN)
    k = tl.arange(0, BK)
    total = tl.zeros((BM, BN), tl.float32)
    for start in range(0, K, BK):
        x = tl.load(x_ptr + m[:, None].to(tl.int64) * K + start + k[None, :])
        w = tl.load(w_ptr + n[:, None].to(tl.int64) * K + start + k[None, :])
        total = tl.dot(x, w.T, total)
    tl.store(out_ptr + m[:, None].to(tl.int64) * N + n[None, :], total.to(out_ptr.dtype.element_ty))


@triton.jit
def descriptor_matmul_kernel(x_desc, w_desc, out_ptr, N, K, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr):
    row, column = tl.program_id(0) * BM, tl.program_id(1) * BN
    total = tl.zeros((BM, BN), tl.float32)
    for start in range(0, K, BK):
        total = tl.dot(x_desc.load([row, start]), w_desc.load([column, start]).T, total)
    m, n = row + tl.arange(0, BM), column + tl.arange(0, BN)
    tl.store(out_ptr + m[:, None].to(tl.int64) * N + n[None, :], total.to(out_ptr.dtype.element_ty))


@triton.heuristics({"EVEN": lambda arguments: arguments["count"] % arguments["BLOCK"] == 0})
@triton.autotune([triton.Config({"BLOCK": 128}), triton.Config({"BLOCK": 256})], key=["count"])
@triton.jit
def decorated_kernel(x_ptr, count, BLOCK: tl.constexpr, EVEN: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    if EVEN:
        tl.store(x_ptr + at, tl.exp2(tl.load(x_ptr + at)))
    else:
        tl.store(x_ptr + at, tl.exp2(tl.load(x_ptr + at, mask=at < count)), mask=at < count)


M, N, K = 8192, 131072, 4096  # a GiB of weights, were they there


def operands() -> list[torch.Tensor]:
    return [torch.empty(shape, dtype=torch.bfloat16, device="meta") for shape in ((M, K), (N, K), (M, N))]


def compile_matmul(capability: int, tile: tuple[int, int, int], **options: int) -> Compiled:
    with compile_for(capability):
        return compile_kernel(matmul_kernel, *operands(), N, K, *tile, **options)


@pytest.mark.parametrize(("capability", "instruction"), [(80, "HMMA"), (90, "HGMMA"), (100, "UTCHMMA")])
def test_a_matmul_uses_the_matrix_instruction_of_its_architecture(capability: int, instruction: str):
    compiled = compile_matmul(capability, (128, 128, 64))
    found = compiled.resources
    assert (compiled.name, compiled.capability) == ("matmul_kernel", capability)
    assert set(found.matrix_instructions) == {instruction}
    assert 0 < found.matrix_instructions[instruction] < found.instructions
    assert found.opcodes["LDGSTS"] > 0  # pointers: asynchronous copies, no TMA
    assert found.stack_bytes == found.spill_loads == found.spill_stores == 0
    assert 16 < found.registers <= 255
    assert 0 < found.shared_bytes <= SHARED_LIMIT[capability]
    assert (found.tensor_memory_columns > 0) == (capability == 100)
    assert found.tensor_memory_columns <= TENSOR_MEMORY_LIMIT


def test_a_descriptor_is_loaded_by_tma_on_sm_90():
    x_MK, w_NK, out_MN = operands()
    sources = [TensorDescriptor.from_tensor(tensor, [128, 64]) for tensor in (x_MK, w_NK)]
    with compile_for(90):
        found = compile_kernel(descriptor_matmul_kernel, *sources, out_MN, N, K, 128, 128, 64, num_warps=8).resources
    assert found.opcodes["UTMALDG"] > 0 and found.opcodes["LDGSTS"] == 0


def test_spills_are_seen():
    found = compile_matmul(80, (128, 64, 32), num_warps=1).resources
    assert found.registers == 255
    assert found.stack_bytes > 0 and found.spill_loads > 0 and found.spill_stores > 0


def test_too_much_shared_memory_is_seen():
    found = compile_matmul(90, (128, 256, 128), num_warps=8, num_stages=4).resources
    assert found.shared_bytes > SHARED_LIMIT[90]


def test_tiles_of_sm_80_are_held_to_the_least_of_the_families_that_take_them():
    found = compile_matmul(80, (128, 256, 64), num_warps=8, num_stages=4).resources
    assert shared_bytes(80) < found.shared_bytes <= SHARED_LIMIT[80]


def test_alignment_and_divisibility_specialise_as_in_a_launch():
    x_MK, w_NK, out_MN = operands()
    with compile_for(80):
        aligned = compile_kernel(matmul_kernel, x_MK, w_NK, out_MN, N, K, 128, 128, 64)
        odd = compile_kernel(matmul_kernel, x_MK[:, 1:], w_NK, out_MN, N, K - 1, 128, 128, 64)
    assert "LDGSTS.E.BYPASS.128" in aligned.sass
    assert odd.resources.opcodes["LDG"] > aligned.resources.opcodes["LDG"]


@pytest.mark.parametrize(("count", "masked"), [(4096, False), (4097, True)])
def test_heuristics_are_computed_and_autotuning_is_left_to_the_caller(count: int, masked: bool):
    with compile_for(90):
        compiled = compile_kernel(decorated_kernel, torch.empty(count, device="meta"), count, BLOCK=256)
    assert compiled.resources.opcodes["MUFU"] > 0
    assert ("arith.cmpi" in compiled.asm["ttir"]) == masked


def test_the_driver_is_as_before_also_after_an_error():
    before = dict(vars(driver))
    with compile_for(80):
        outer = driver.active
        with compile_for(90):
            assert driver.active is not outer
        assert driver.active is outer
    with pytest.raises(KeyError), compile_for(100):
        raise KeyError
    assert vars(driver) == before


def test_a_launch_within_it_is_refused():
    x = torch.zeros(256)
    with compile_for(90), pytest.raises(AttributeError, match="nothing is launched"):
        matmul_kernel[(1,)](x, x, x, 16, 16, 16, 16, 16)


def test_what_is_no_kernel_is_refused():
    with compile_for(90), pytest.raises(ValueError, match=r"kernel: .* got function"):
        compile_kernel(lambda: None)
