"""Canaries: if one of these fails, no result of an interpreted bf16 kernel can be trusted.

Shape suffixes: M, N rows of the operands, K the contracted dimension; C columns.
"""

import os

import pytest
import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.runtime import interpreter
from triton.tools.tensor_descriptor import TensorDescriptor

from synpro_kernels.testing import assert_as_accurate
from synpro_kernels.testing.interpreter import install

# What is tested is the interpreter; kernels on a GPU are in the other modules.
if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("kernels are launched here, not interpreted", allow_module_level=True)

BF16 = torch.bfloat16
# Ties both ways, a carry into the exponent, the largest finite value and one above it, subnormals, zeros, no numbers.
CORNERS = [1 + 2**-8, 1 + 3 * 2**-8, 1 + 2**-8 + 2**-20, 2 - 2**-9, 3.39e38, 3.4e38, 1e-40, -1e-40, 0.0, -0.0]
CORNERS += [float("inf"), float("-inf"), float("nan"), -float("nan"), 65504.0, -3.0]


def same(actual: Tensor, expected: Tensor) -> bool:
    """Bit for bit (the sign of zero too), except that every NaN equals every NaN."""
    nan = expected.isnan()
    bits = torch.int16 if expected.dtype == BF16 else torch.int32
    return torch.equal(actual.isnan(), nan) and torch.equal(actual[~nan].view(bits), expected[~nan].view(bits))


def numbers(count: int, seed: int, dtype: torch.dtype = BF16) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(count, generator=generator) * torch.logspace(-6, 6, count)
    values[: len(CORNERS)] = torch.tensor(CORNERS)
    values[-2:].view(torch.int32).copy_(torch.tensor([0x7F800001, 0x7FFFFFFF]))  # NaN that rounding would make inf, -0
    return values[torch.randperm(count, generator=generator)].to(dtype)


@triton.jit
def cast_kernel(x_ptr, y_ptr, C: tl.constexpr):
    at = tl.arange(0, C)
    tl.store(y_ptr + at, tl.load(x_ptr + at).to(y_ptr.dtype.element_ty))


@pytest.mark.parametrize(("source", "result"), [(torch.float32, BF16), (BF16, torch.float32), (torch.float16, BF16)])
def test_casts_round_as_torch_does(source: torch.dtype, result: torch.dtype):
    x_C = numbers(1024, 0, source)
    y_C = torch.empty(1024, dtype=result)
    cast_kernel[(1,)](x_C, y_C, 1024)
    assert same(y_C, x_C.to(result))


def test_integers_become_bf16_and_come_back():
    x_C = torch.randint(-100_000, 100_000, (1024,), generator=torch.Generator().manual_seed(0), dtype=torch.int32)
    y_C, back_C = torch.empty(1024, dtype=BF16), torch.empty(1024, dtype=torch.int32)
    cast_kernel[(1,)](x_C, y_C, 1024)
    cast_kernel[(1,)](y_C, back_C, 1024)
    assert same(y_C, x_C.to(BF16))
    assert torch.equal(back_C, x_C.to(BF16).to(torch.int32))


@triton.jit
def elementwise_kernel(a_ptr, b_ptr, out_ptr, C: tl.constexpr):
    at = tl.arange(0, C)
    a, b = tl.load(a_ptr + at), tl.load(b_ptr + at)
    tl.store(out_ptr + at, a + b)
    tl.store(out_ptr + C + at, a - b)
    tl.store(out_ptr + 2 * C + at, a * b)
    tl.store(out_ptr + 3 * C + at, a / b)
    tl.store(out_ptr + 4 * C + at, a * 1.7 + 0.3)
    tl.store(out_ptr + 5 * C + at, tl.abs(a))
    tl.store(out_ptr + 6 * C + at, tl.where(a < b, a, 0.1))
    tl.store(out_ptr + 7 * C + at, (a >= b).to(tl.bfloat16))
    tl.store(out_ptr + 8 * C + at, tl.full((C,), 1.7, tl.bfloat16))
    tl.store(out_ptr + 9 * C + at, tl.maximum(a, b))
    tl.store(out_ptr + 10 * C + at, tl.minimum(a, b))
    tl.store(out_ptr + 11 * C + at, tl.clamp(a, b, b + 1.0))
    tl.store(out_ptr + 12 * C + at, tl.fma(a, b, a))


def expected_elementwise(a_C: Tensor, b_C: Tensor) -> dict[str, Tensor]:
    constants = torch.tensor([1.7, 0.3, 0.1]).to(BF16)
    top_C = b_C + torch.ones((), dtype=BF16)
    return {
        "add": a_C + b_C,
        "subtract": a_C - b_C,
        "multiply": a_C * b_C,
        "divide": (a_C.float() / b_C.float()).to(BF16),
        "constants": a_C * constants[0] + constants[1],
        "absolute": a_C.abs(),
        "where": torch.where(a_C < b_C, a_C, constants[2]),
        "compare": (a_C >= b_C).to(BF16),
        "full": constants[0].expand_as(a_C),
        "maximum skips NaN": torch.fmax(a_C, b_C),
        "minimum skips NaN": torch.fmin(a_C, b_C),
        "clamp skips NaN": torch.fmin(torch.fmax(a_C, b_C), top_C),
        "fma": (a_C.float() * b_C.float() + a_C.float()).to(BF16),
    }


def test_elementwise_operations_equal_torch():
    a_C, b_C = numbers(512, 1), numbers(512, 2)
    out = torch.empty(13, 512, dtype=BF16)
    elementwise_kernel[(1,)](a_C, b_C, out, 512)
    expected = expected_elementwise(a_C, b_C)
    wrong = [name for name, actual in zip(expected, out, strict=True) if not same(actual + 0, expected[name] + 0)]
    assert wrong == []


@triton.jit
def dot_kernel(x_ptr, w_ptr, start_ptr, out_ptr, M: tl.constexpr, N: tl.constexpr, K: tl.constexpr):
    m, n, k = tl.arange(0, M), tl.arange(0, N), tl.arange(0, K)
    x = tl.load(x_ptr + m[:, None] * K + k[None, :])
    w = tl.load(w_ptr + n[:, None] * K + k[None, :])
    at = m[:, None] * N + n[None, :]
    tl.store(out_ptr + at, tl.dot(x, w.T, tl.load(start_ptr + at)))


@pytest.mark.parametrize("dtype", [BF16, torch.float16, torch.float32])
def test_a_dot_accumulates_in_fp32(dtype: torch.dtype):
    generator = torch.Generator().manual_seed(3)
    x_MK, w_NK = (torch.randn(rows, 64, generator=generator).to(dtype) for rows in (32, 16))
    start_MN, out_MN = torch.randn(32, 16, generator=generator), torch.empty(32, 16)
    dot_kernel[(1,)](x_MK, w_NK, start_MN, out_MN, 32, 16, 64)
    plain_MN = start_MN + x_MK.float() @ w_NK.float().T
    truth_MN = start_MN.double() + x_MK.double() @ w_NK.double().T
    assert_as_accurate(out_MN, plain_MN, truth_MN, f"dot of {dtype}")


@triton.jit
def larger_magnitude(a, b):
    return tl.where(a * a > b * b, a, b)


@triton.jit
def reduce_kernel(x_ptr, out_ptr, at_ptr, running_ptr, M: tl.constexpr, C: tl.constexpr):
    m, c = tl.arange(0, M), tl.arange(0, C)
    x = tl.load(x_ptr + m[:, None] * C + c[None, :])
    tl.store(out_ptr + m, tl.max(x, axis=1))
    tl.store(out_ptr + M + m, tl.min(x, axis=1))
    tl.store(out_ptr + 2 * M + m, tl.sum(x, axis=1))
    tl.store(out_ptr + 3 * M + m, tl.sum(x.to(tl.float32), axis=1))
    tl.store(out_ptr + 4 * M + m, tl.reduce(x, 1, larger_magnitude))
    tl.store(at_ptr + m, tl.argmax(x, axis=1))
    tl.store(running_ptr + m[:, None] * C + c[None, :], tl.cumsum(x, axis=1))


def test_reductions_see_values_and_not_bits():
    # Few bits in each number: any order of addition gives the same sum. No ties for argmax: one largest entry in a row.
    x_MC = torch.randint(-64, 64, (8, 32), generator=torch.Generator().manual_seed(4)).to(BF16)
    x_MC[torch.arange(8), torch.arange(0, 32, 4)] = 100.0
    out, at_M, running_MC = torch.empty(5, 8), torch.empty(8, dtype=torch.int32), torch.empty(8, 32)
    reduce_kernel[(1,)](x_MC, out, at_M, running_MC, 8, 32)
    exact_MC = x_MC.float()
    assert torch.equal(out[0], exact_MC.amax(1))
    assert torch.equal(out[1], exact_MC.amin(1))
    assert torch.equal(out[2], exact_MC.sum(1).to(BF16).float())
    assert torch.equal(out[3], exact_MC.sum(1))
    assert torch.equal(out[4], torch.full((8,), 100.0))
    assert torch.equal(at_M.long(), exact_MC.argmax(1))
    assert torch.equal(running_MC, exact_MC.cumsum(1))


@triton.jit
def descriptor_kernel(x_desc, y_desc, M: tl.constexpr, C: tl.constexpr):
    row, column = tl.program_id(0) * M, tl.program_id(1) * C
    y_desc.store([row, column], x_desc.load([row, column]) + 1.0)


@pytest.mark.parametrize(("padding", "outside"), [("zero", 1.0), ("nan", float("nan"))])
def test_descriptors_load_store_and_pad_bf16(padding: str, outside: float):
    x_MC = numbers(20 * 24, 5).view(20, 24)
    y_MC = torch.empty(32, 32, dtype=BF16)
    source = TensorDescriptor.from_tensor(x_MC, [16, 16], padding=padding)
    descriptor_kernel[(2, 2)](source, TensorDescriptor.from_tensor(y_MC, [16, 16]), 16, 16)
    expected_MC = torch.full_like(y_MC, outside)
    expected_MC[:20, :24] = x_MC + 1
    assert same(y_MC, expected_MC)


def test_a_descriptor_stores_nothing_outside():
    x_MC = numbers(32 * 32, 6).view(32, 32)
    y_MC = torch.zeros(32, 32, dtype=BF16)
    inner_MC = y_MC[:20, :24]
    descriptor_kernel[(2, 2)](
        TensorDescriptor.from_tensor(x_MC, [16, 16]), TensorDescriptor.from_tensor(inner_MC, [16, 16]), 16, 16
    )
    assert same(inner_MC, x_MC[:20, :24] + 1)
    assert not y_MC[20:].any() and not y_MC[:, 24:].any()


@triton.jit
def atomic_kernel(x_ptr):
    tl.atomic_add(x_ptr, tl.load(x_ptr))


def test_bf16_atomics_are_refused_and_fp32_ones_are_not():
    x_1 = torch.ones(1)
    atomic_kernel[(3,)](x_1)
    assert x_1.item() == 8.0
    with pytest.raises(Exception, match="bf16 atomics"):
        atomic_kernel[(1,)](torch.ones(1, dtype=BF16))


def test_forgotten_outputs_are_nan():
    assert torch.empty(7).isnan().all() and torch.empty(7, dtype=BF16).new_empty(3, 2).isnan().all()


def test_install_can_be_called_again_and_refuses_without_the_variable(monkeypatch: pytest.MonkeyPatch):
    builder = type(interpreter.interpreter_builder)
    install()
    assert type(interpreter.interpreter_builder) is builder
    monkeypatch.delenv("TRITON_INTERPRET")
    with pytest.raises(RuntimeError, match="TRITON_INTERPRET"):
        install()
