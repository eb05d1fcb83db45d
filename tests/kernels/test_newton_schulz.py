"""`orthogonalize` against fp64, against the polar factor, and what it promises besides numbers.

Shapes: M x N matrices, B of them.
"""

import math

import pytest
import torch
from torch import Tensor

from synpro_kernels import orthogonalize
from synpro_kernels.ops.newton_schulz import (
    POLAR_EXPRESS,
    QUINTIC,
    Coefficients,
    orthogonalize_definition,
    polar_factor_definition,
    torch_backend,
)
from synpro_kernels.ops.newton_schulz.coefficients import Step, polynomials
from synpro_kernels.ops.newton_schulz.op import _symmetric_product
from synpro_kernels.testing import assert_as_accurate

NAMED = pytest.mark.parametrize("coefficients", ["quintic", "polar_express"])
# The last: more rows than one strip on the CPU, and no multiple of it.
SHAPES = pytest.mark.parametrize("shape", [(1, 7), (33, 20), (3, 20, 65), (2, 300, 310), (530, 300)], ids=str)


def plain(matrices: Tensor, coefficients: Coefficients, steps: int) -> Tensor:
    """The iteration as it is usually written: every product rounded to the matrices' dtype."""
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if tall else matrices
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)
    for a, b, c in polynomials(coefficients, steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if tall else x


@NAMED
@SHAPES
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=["fp32", "bf16", "fp16"])
def test_values_are_as_accurate_as_plain_pytorch(device, shape, coefficients, dtype):
    torch.manual_seed(0)
    matrices = torch.randn(shape).to(dtype)
    found = orthogonalize(matrices, coefficients=coefficients)
    truth = orthogonalize_definition(matrices.double(), coefficients=coefficients)
    assert found.dtype == torch.float32
    assert_as_accurate(found, plain(matrices, coefficients, 5), truth, f"{shape} {coefficients}")


@NAMED
def test_the_dtype_of_products_may_be_another_than_the_matrices(device, coefficients):
    torch.manual_seed(0)
    matrices = torch.randn(40, 64)
    truth = orthogonalize_definition(matrices.double(), coefficients=coefficients)
    halves = plain(matrices.bfloat16(), coefficients, 5)
    found = orthogonalize(matrices, coefficients=coefficients, dtype=torch.bfloat16)
    assert_as_accurate(found, halves, truth, "bf16")
    assert (found.double() - truth).abs().max() > 1e-4  # products of halves: as rounded as asked for
    wide = orthogonalize(matrices, coefficients=coefficients, dtype=torch.float64)
    assert wide.dtype == torch.float64
    torch.testing.assert_close(wide, truth, rtol=1e-10, atol=1e-10)


def spectrum(smallest: float, rows: int = 24, columns: int = 40) -> tuple[Tensor, Tensor]:
    """A matrix of Frobenius norm 1 whose singular values go down to `smallest` of the largest, and its polar factor."""
    torch.manual_seed(1)
    left, _ = torch.linalg.qr(torch.randn(rows, rows, dtype=torch.float64))
    right, _ = torch.linalg.qr(torch.randn(columns, rows, dtype=torch.float64))
    values = torch.logspace(0, math.log10(smallest), rows, dtype=torch.float64)
    return left * (values / values.norm()) @ right.T, left @ right.T


def test_polar_express_tends_to_the_polar_factor():
    matrix, factor = spectrum(2e-2)
    torch.testing.assert_close(polar_factor_definition(matrix), factor)
    errors = [
        float((orthogonalize(matrix, steps=n, coefficients="polar_express") - factor).abs().max()) for n in (2, 5, 8)
    ]
    assert errors[0] > errors[1] > errors[2] and errors[2] < 1e-6, errors


def test_quintic_brings_singular_values_near_one_in_five_steps():
    matrix, _ = spectrum(2e-2)
    values = torch.linalg.svdvals(orthogonalize(matrix))
    assert 0.65 < float(values.min()) < float(values.max()) < 1.25
    assert float(torch.linalg.svdvals(matrix).min()) < 0.02


def minimax(low: float, high: float) -> Step:
    """The odd polynomial of degree 5 nearest to 1 on [low, high], by Remez's exchange."""
    inner, found = [(3 * low + high) / 4, (low + 3 * high) / 4], (0.0, 0.0, 0.0)
    for _ in range(100):
        points = torch.tensor([low, *inner, high], dtype=torch.float64)
        signs = torch.tensor([1.0, -1.0, 1.0, -1.0], dtype=torch.float64)
        system = torch.stack([points, points**3, points**5, signs], 1)
        a, b, c, _error = torch.linalg.solve(system, torch.ones(4, dtype=torch.float64)).tolist()
        root = math.sqrt(9 * b * b - 20 * a * c)
        inner = [math.sqrt((-3 * b - root) / (10 * c)), math.sqrt((-3 * b + root) / (10 * c))]
        found = (a, b, c)
    return found


def test_polar_express_is_the_best_polynomial_of_each_step():
    low, high = 1e-3, 1.0
    for index, step in enumerate(POLAR_EXPRESS[:6]):
        a, b, c = minimax(max(low, 0.02407327424182761 * high), high)
        ends = a * low + b * low**3 + c * low**5, a * high + b * high**3 + c * high**5
        centred = [2 / sum(ends) * value for value in (a, b, c)]  # so that what is left lies around 1
        expected = [value / 1.01**power for value, power in zip(centred, (1, 3, 5), strict=True)]
        assert step == pytest.approx(expected, rel=1e-9), index
        low = centred[0] * low + centred[1] * low**3 + centred[2] * low**5
        high = 2 - low
    assert POLAR_EXPRESS[-1] == (15 / 8, -10 / 8, 3 / 8)  # the best polynomial's limit as the interval shrinks to 1


def test_steps_beyond_the_last_repeat_it():
    assert polynomials("quintic", 3) == [QUINTIC[0]] * 3
    assert polynomials([(1, 2, 3), (4, 5, 6)], 4) == [(1, 2, 3), *[(4, 5, 6)] * 3]
    assert polynomials("polar_express", 2) == list(POLAR_EXPRESS[:2])


@pytest.mark.parametrize("dim", [-1, -2])
@pytest.mark.parametrize("shape", [(12, 30), (30, 12)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_shards_give_the_whole_matrix(dim, shape, dtype):
    """Shards of unequal size take turns at a reduction by threads, as ranks would."""
    from concurrent.futures import ThreadPoolExecutor
    from threading import Barrier

    torch.manual_seed(2)
    whole = torch.randn(2, *shape)
    shards = whole.split([shape[dim] - 5, 5], dim)
    meet, held = Barrier(2), [torch.empty(0)] * 2

    def run(rank: int) -> Tensor:
        def reduce(tensor: Tensor) -> None:
            assert tensor.dtype == torch.float32
            held[rank] = tensor.clone()
            meet.wait()
            total = held[0] + held[1]
            meet.wait()
            tensor.copy_(total)

        return orthogonalize(shards[rank], gram_reduce=reduce, sharded_dim=dim, dtype=dtype)

    with ThreadPoolExecutor(2) as pool:
        found = torch.cat(list(pool.map(run, range(2))), dim)
    truth = orthogonalize_definition(whole.double())
    assert_as_accurate(found, plain(whole.to(dtype), "quintic", 5), truth, f"dim {dim}")


def test_a_matrix_does_not_depend_on_its_batch_mates_scale_or_sides(device):
    torch.manual_seed(3)
    stack = torch.randn(4, 24, 40)
    together = orthogonalize(stack)
    for matrix, expected in zip(stack, together, strict=True):
        torch.testing.assert_close(orthogonalize(matrix), expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(orthogonalize(1e-3 * matrix), expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(orthogonalize(matrix.mT).mT, expected, rtol=1e-4, atol=1e-5)


def test_a_single_number_goes_through_the_polynomials(device):
    """By itself in fp32 alone: the rounding of one half is a matter of luck, which no other element evens out."""
    for coefficients in ("quintic", "polar_express"):
        value = 1.0
        for a, b, c in polynomials(coefficients, 5):
            value = a * value + b * value**3 + c * value**5
        found = orthogonalize(torch.tensor([[-3.0]]), coefficients=coefficients)
        assert float(found) == pytest.approx(-value, rel=1e-4)


def test_zeros_stay_zeros_and_nan_stays_in_its_matrix(device):
    stack = torch.randn(3, 8, 8)
    stack[0], stack[1] = 0.0, torch.nan
    found = orthogonalize(stack)
    assert (found[0] == 0).all() and found[1].isnan().all() and found[2].isfinite().all()
    assert orthogonalize(stack[:0]).shape == (0, 8, 8)


@pytest.mark.parametrize("rows", [20, 300])
def test_two_runs_are_bitwise_equal(device, rows):
    matrices = torch.randn(2, rows, 320)
    assert torch.equal(orthogonalize(matrices), orthogonalize(matrices))


def test_the_gram_product_is_symmetric_to_the_bit_in_strips():
    left = torch.randn(2, 530, 40)
    found = _symmetric_product(left, None, 1.0, 0.0, False)
    strips = [slice(0, 256), slice(256, 512), slice(512, 530)]
    for one in strips:
        for other in strips:
            if one != other:
                assert torch.equal(found[:, one, other], found[:, other, one].mT)


@pytest.mark.parametrize("tiles", [True, False])
def test_a_cpu_multiplies_bf16_as_it_is_where_it_has_tiles_for_it(monkeypatch, tiles):
    torch.manual_seed(5)
    left = torch.randn(2, 300, 64).bfloat16()
    monkeypatch.setattr(torch_backend, "_BF16_TILES", tiles)
    found = torch_backend.symmetric_product(left, left @ left.mT, 0.5, -1.25, False)
    exact = left.double() @ left.double().mT
    truth = 0.5 * exact - 1.25 * (left @ left.mT).double()
    assert found.dtype == torch.bfloat16
    assert_as_accurate(found, truth.bfloat16(), truth, "bf16")
    assert torch_backend._factor(left).dtype == (torch.bfloat16 if tiles else torch.float32)
    assert torch_backend._factor(left.half()).dtype == torch.float32


def test_opcheck_finds_no_fault():
    for rows, dtype, wide in ((5, torch.float32, False), (300, torch.bfloat16, True)):
        left = torch.randn(2, rows, 8).to(dtype)
        addend = torch.randn(2, rows, rows).to(dtype)
        torch.library.opcheck(_symmetric_product, (left, None, 1.0, 0.0, wide))
        torch.library.opcheck(_symmetric_product, (left, addend, 0.5, -2.0, wide))


@pytest.mark.slow
def test_it_compiles_as_one_graph():
    matrices = torch.randn(2, 9, 17)
    compiled = torch.compile(orthogonalize, fullgraph=True)
    torch.testing.assert_close(compiled(matrices, coefficients="polar_express"), orthogonalize(
        matrices, coefficients="polar_express"
    ), rtol=1e-4, atol=1e-5)  # fmt: skip


def test_the_definition_passes_gradcheck():
    matrices = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: orthogonalize_definition(x, steps=3), matrices)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"matrices": torch.ones(3)}, r"matrices: expected floating \[\.\.\., M >= 1, N >= 1\]"),
        ({"matrices": torch.ones(3, 0)}, "matrices: expected"),
        ({"matrices": torch.ones(3, 3, dtype=torch.int64)}, "matrices: expected floating"),
        ({"matrices": torch.ones(3, 3, requires_grad=True)}, "matrices: requires grad"),
        ({"dtype": torch.int32}, "dtype: expected one of"),
        ({"steps": 0}, "steps: expected >= 1, got 0"),
        ({"eps": 0.0}, "eps: expected > 0"),
        ({"coefficients": "cubic"}, "coefficients: expected quintic or polar_express, or steps, got 'cubic'"),
        ({"coefficients": []}, "coefficients: expected"),
        ({"coefficients": [(1.0, 2.0)]}, "coefficients: expected"),
        ({"sharded_dim": 0, "gram_reduce": print}, "sharded_dim: expected -2"),
        ({"sharded_dim": -1}, "gram_reduce: expected with sharded_dim"),
        ({"gram_reduce": print}, "sharded_dim: expected with gram_reduce"),
    ],
    ids=str,
)
def test_what_it_cannot_take_is_refused_by_name(changed, message):
    with pytest.raises(ValueError, match=message):
        orthogonalize(**({"matrices": torch.ones(3, 3)} | changed))
