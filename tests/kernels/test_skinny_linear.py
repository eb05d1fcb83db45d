"""`skinny_linear` against fp64 on every path and for every instruction set, and what it refuses.

Shapes: B rows, K inputs, N outputs.
"""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from synpro_kernels import skinny_linear, skinny_linear_definition
from synpro_kernels.common.extension import csrc_status
from synpro_kernels.testing import assert_as_accurate, nan_filled_empty, peak_growth, using

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
# B, K, N: whole and broken registers, tiles and panels; sums in one chunk, two and three; one of each.
SHAPES = [
    (1, 1, 1), (1, 576, 960), (2, 7, 3), (3, 33, 47), (5, 64, 49), (7, 576, 100), (8, 1024, 96), (9, 1025, 2),
    (13, 31, 4), (16, 1536, 98), (17, 80, 51), (33, 2100, 50), (63, 16, 145), (64, 95, 97),
]  # fmt: skip
LANES = pytest.mark.parametrize("lanes", [16, 8, 4], ids=["AVX-512", "AVX2", "portable"])


def problem(shape: tuple[int, int, int], dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """x [B, K], weight [N, K] and bias [N]."""
    rows, width, count = shape
    torch.manual_seed(0)
    return tuple(torch.randn(size).to(dtype) for size in ((rows, width), (count, width), (count,)))


def compiled(x: Tensor, weight: Tensor, bias: Tensor | None = None, lanes: int = 16) -> Tensor:
    """The compiled product itself, with registers of at most so many floats; skips where it was not built."""
    loaded, reason = csrc_status()
    if not loaded:
        pytest.skip(f"csrc: {reason}")
    with nan_filled_empty():
        return torch.ops.synpro_csrc.skinny_linear(x, weight, bias, True, lanes)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("with_bias", [True, False], ids=["bias", "no bias"])
def test_values_are_as_accurate_as_plain_pytorch(backend, shape, dtype, with_bias):
    x, weight, bias = problem(shape, dtype)
    given = bias if with_bias else None
    truth = skinny_linear_definition(x.double(), weight.double(), None if given is None else given.double())
    found = skinny_linear(x, weight, given)
    assert found.dtype == dtype
    assert_as_accurate(found, F.linear(x, weight, given), truth, str(shape))
    wide = skinny_linear(x, weight, given, wide=True)
    assert wide.dtype == torch.float32
    plain = F.linear(x.float(), weight.float(), None if given is None else given.float())
    assert_as_accurate(wide, plain, truth, f"{shape}, wide")


@LANES
@DTYPES
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_instruction_set_is_as_accurate_as_plain_pytorch(shape, dtype, lanes):
    x, weight, bias = problem(shape, dtype)
    plain = F.linear(x.float(), weight.float(), bias.float())
    truth = skinny_linear_definition(x.double(), weight.double(), bias.double())
    assert_as_accurate(compiled(x, weight, bias, lanes), plain, truth, str(shape))


@LANES
@DTYPES
def test_a_row_depends_on_no_other_row_to_the_last_bit(dtype, lanes):
    x, weight, _ = problem((29, 1100, 50), dtype)
    together = compiled(x, weight, lanes=lanes)
    for rows in (1, 3, 6, 8, 15):
        for start in range(0, 29 - rows, 7):
            alone = compiled(x[start : start + rows].contiguous(), weight, lanes=lanes)
            assert torch.equal(alone, together[start : start + rows])


@DTYPES
def test_the_number_of_threads_changes_no_bit(dtype):
    x, weight, _ = problem((5, 300, 500), dtype)
    threads, found = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            found.append(compiled(x, weight))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


@LANES
@DTYPES
def test_nan_in_a_row_or_a_weight_stays_where_it_belongs(dtype, lanes):
    x, weight, _ = problem((9, 70, 50), dtype)
    x[4, 69], weight[49, 0] = float("nan"), float("inf")
    found = compiled(x, weight, lanes=lanes)
    assert bool(found[4].isnan().all()) and bool((found[:, 49].isinf() | found[:, 49].isnan()).all())
    rest = torch.cat((found[:4], found[5:]))[:, :49]
    assert bool(rest.isfinite().all())


def test_leading_dimensions_and_strided_rows_are_the_same_product(backend):
    x, weight, bias = problem((24, 64, 33), torch.float32)
    expected = skinny_linear(x, weight, bias)
    assert torch.equal(skinny_linear(x.view(2, 3, 4, 64), weight, bias), expected.view(2, 3, 4, 33))
    assert torch.equal(skinny_linear(x[5], weight, bias), skinny_linear(x[5:6], weight, bias)[0])
    strided = torch.empty(24, 128).copy_(x.repeat(1, 2))[:, :64]
    assert torch.equal(skinny_linear(strided, weight, bias), expected)
    torch.testing.assert_close(skinny_linear(x, weight.T.contiguous().T, bias), expected)


def test_fp64_is_kept_and_no_rows_give_none(backend):
    x, weight, bias = problem((3, 20, 5), torch.float64)
    assert torch.equal(skinny_linear(x, weight, bias, wide=True), F.linear(x, weight, bias))
    assert skinny_linear(x.float()[:0], weight.float()).shape == (0, 5)


def test_more_rows_than_a_few_are_pytorch_s(backend):
    x, weight, bias = problem((65, 40, 30), torch.float32)
    assert torch.equal(skinny_linear(x, weight, bias), F.linear(x, weight, bias))


@pytest.mark.parametrize("wide", [False, True])
def test_what_wants_a_gradient_gets_pytorch_s(backend, wide):
    x, weight, bias = problem((4, 30, 20), torch.bfloat16)
    ours, plain = ([t.clone().requires_grad_() for t in (x, weight, bias)] for _ in range(2))
    skinny_linear(*ours, wide=wide).float().square().sum().backward()
    (F.linear(*(t.float() for t in plain)) if wide else F.linear(*plain)).float().square().sum().backward()
    for mine, theirs in zip(ours, plain, strict=True):
        assert mine.grad is not None
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=2e-2, atol=2e-1)
    with torch.no_grad():
        assert not skinny_linear(*ours, wide=wide).requires_grad


def test_weights_are_read_in_place():
    loaded, reason = csrc_status()
    if not loaded:
        pytest.skip(f"csrc: {reason}")
    x, weight, _ = problem((8, 1024, 16384), torch.bfloat16)  # 32 MiB; 64 as fp32
    with using("csrc"):
        skinny_linear(x, weight, wide=True)
        grown = peak_growth(lambda: skinny_linear(x, weight, wide=True), "cpu")
    if grown is None:
        pytest.skip("this kernel does not let a process reset its peak")
    assert grown < 8 << 20


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ((torch.zeros(2, 3), torch.zeros(5, 4)), r"x: expected \[\.\.\., 4\]"),
        ((torch.zeros(2, 4).bfloat16(), torch.zeros(5, 4)), r"x: expected .* in the weight's torch.float32"),
        ((torch.zeros(2, 4), torch.zeros(5, 4, 1)), r"weight_NK: expected floating \[N, K\]"),
        ((torch.zeros(2, 4), torch.zeros(5, 4).int()), "weight_NK: expected floating"),
        ((torch.zeros(2, 4), torch.zeros(5, 4), torch.zeros(4)), r"bias_N: expected \[5\]"),
    ],
)
def test_arguments_that_do_not_fit_are_named(arguments, named):
    with pytest.raises(ValueError, match=named):
        skinny_linear(*arguments)
