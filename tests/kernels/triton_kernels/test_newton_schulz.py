"""The Triton kernel of the symmetric product against fp64, at odd shapes, both ways of reading operands.

Shapes: B matrices of M x K.
"""

import pytest
import torch
from torch import Tensor

from synpro_kernels import orthogonalize, orthogonalize_definition
from synpro_kernels.ops.newton_schulz import tiles
from synpro_kernels.ops.newton_schulz.triton_symmetric import symmetric_call
from synpro_kernels.testing import assert_as_accurate, using
from tests.kernels.test_newton_schulz import plain

# Triton's interpreter and what was loaded.
pytestmark = pytest.mark.filterwarnings("ignore:Conversion of an array with ndim > 0:DeprecationWarning")

HALVES = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
READING = pytest.mark.parametrize("descriptor", [True, False], ids=["descriptor", "pointer"])
SHAPES = pytest.mark.parametrize("shape", [(1, 1, 1), (3, 33, 120), (2, 130, 65), (1, 560, 48)], ids=str)


def product(left: Tensor, addend: Tensor | None, alpha: float, beta: float, dtype: torch.dtype) -> Tensor:
    found = alpha * (left.to(dtype) @ left.to(dtype).mT)
    return found if addend is None else found + beta * addend.to(dtype)


@HALVES
@READING
@SHAPES
@pytest.mark.parametrize("adds", [False, True], ids=["alone", "added"])
@pytest.mark.parametrize("wide", [False, True], ids=["halves", "fp32"])
def test_the_product_is_as_accurate_as_plain_pytorch(shape, adds, wide, descriptor, dtype):
    torch.manual_seed(sum(shape))
    batch, rows, _ = shape
    left = torch.randn(shape).to(dtype)
    symmetric = torch.randn(batch, rows, rows)
    addend = (symmetric + symmetric.mT).to(dtype) if adds else None
    call = symmetric_call(left, addend, 0.5, -1.25, wide, capability=90, descriptor=descriptor)
    found = call.launch()[0]
    assert found.dtype == (torch.float32 if wide else dtype)
    truth = product(left, addend, 0.5, -1.25, torch.float64)
    rounded = product(left, addend, 0.5, -1.25, torch.float32).to(found.dtype)
    assert_as_accurate(found, rounded, truth, str(shape))


@READING
def test_tiles_off_the_diagonal_are_mirrored_to_the_bit(descriptor):
    left = torch.randn(2, 150, 40).bfloat16()
    found = symmetric_call(left, None, 1.0, 0.0, False, capability=80, descriptor=descriptor).launch()[0]
    side = tiles.symmetric_tile(80, 150).BM
    for one in (slice(0, side), slice(side, 2 * side)):
        other = slice(2 * side, 150)
        assert torch.equal(found[:, one, other], found[:, other, one].mT)


@READING
def test_matrices_do_not_leak_into_each_other(descriptor):
    """Sides that no tile divides: what a tile reads beyond a matrix's end belongs to the next one."""
    left = torch.randn(3, 70, 48).bfloat16()
    expected = symmetric_call(left, None, 1.0, 0.0, False, capability=90, descriptor=descriptor).launch()[0]
    left[1] = torch.nan
    found = symmetric_call(left, None, 1.0, 0.0, False, capability=90, descriptor=descriptor).launch()[0]
    assert torch.equal(found[[0, 2]], expected[[0, 2]]) and found[1].isnan().all()


def test_views_with_gaps_are_read_as_they_are():
    held = torch.randn(2, 40, 96).bfloat16()
    for view in (held[:, :, 16:48], held[:, 4:20], held[:, :, ::2]):
        found = symmetric_call(view, None, 1.0, 0.0, True, capability=90).launch()[0]
        torch.testing.assert_close(found, view.float() @ view.float().mT, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("coefficients", ["quintic", "polar_express"])
@pytest.mark.parametrize("shape", [(2, 40, 72), (100, 36)], ids=str)
def test_the_iteration_is_as_accurate_as_plain_pytorch(shape, coefficients):
    torch.manual_seed(4)
    matrices = torch.randn(shape).bfloat16()
    with using("triton"):
        found = orthogonalize(matrices, coefficients=coefficients)
    truth = orthogonalize_definition(matrices.double(), coefficients=coefficients)
    assert_as_accurate(found, plain(matrices, coefficients, 5), truth, str(shape))
    with using("triton"):
        assert orthogonalize(matrices.new_empty(0, 4, 4)).shape == (0, 4, 4)
