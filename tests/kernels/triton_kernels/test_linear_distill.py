"""linear_distill's Triton kernels: rows against fp64, and the op on them against its definition."""

import math

import pytest
import torch

from synpro_kernels import Teacher, linear_distill, linear_distill_definition
from synpro_kernels.ops.linear_distill.dispatch import LINEAR_DISTILL
from synpro_kernels.testing import using
from tests.kernels.distilled_rows import CASES, check_rows, spoilt_rows

pytestmark = pytest.mark.filterwarnings("ignore:Conversion of an array with ndim > 0:DeprecationWarning")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_rows_are_as_accurate_as_pytorch_s(case, dtype):
    check_rows(LINEAR_DISTILL.named("triton"), case, dtype)


def test_what_is_masked_counts_nowhere_and_nan_stays_in_its_row():
    divergence, slopes = spoilt_rows(LINEAR_DISTILL.named("triton"))
    assert divergence[:2].isfinite().all() and divergence[2] == math.inf and divergence[3:5].isnan().all()
    assert slopes.isnan().any(1).tolist() == [False, False, False, True, True, False]


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("teachers", [1, 3])
def test_the_op_is_its_definition(teachers, temperature):
    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=torch.Generator("cpu").manual_seed(sum(shape)), device="cpu").to(
            torch.empty(0).device
        )

    student = [normal(19, 24), normal(301, 24) / 3]
    taught = [Teacher(normal(19, 8 + k), normal(301, 8 + k)) for k in range(teachers)]
    target = torch.arange(19) * 7
    found, exact = [], []
    for into, op, dtype in ((found, linear_distill, torch.float32), (exact, linear_distill_definition, torch.float64)):
        leaves = [one.to(dtype).requires_grad_() for one in student]
        with using("triton"):
            parts = op(
                *leaves, target, teachers=[Teacher(*(one.to(dtype) for one in each)) for each in taught], share=0.4,
                temperature=temperature, z_loss=0.1,
            )  # fmt: skip
        into += [parts.loss.detach(), parts.divergence, *torch.autograd.grad(parts.loss, leaves)]
    for ours, theirs in zip(found, exact, strict=True):
        torch.testing.assert_close(ours, theirs.float(), rtol=1e-5, atol=1e-5)
