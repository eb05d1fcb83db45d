"""The row kernels of linear_distill against fp64: broken blocks, masked and spoilt entries, targets elsewhere."""

import math

import pytest
import torch

from synpro_kernels.common.dispatch import BackendName
from synpro_kernels.ops.linear_distill.dispatch import LINEAR_DISTILL
from synpro_kernels.ops.linear_distill.types import Slopes
from tests.kernels.distilled_rows import CASES, check_rows, spoilt_rows


def named(backend: str) -> BackendName:
    return "csrc" if backend == "csrc" else "triton" if backend == "cuda" else "torch"


@pytest.mark.parametrize("case", CASES, ids=str)
def test_rows_are_as_accurate_as_pytorch_s(backend, case):
    check_rows(LINEAR_DISTILL.named(named(backend)), case)


def test_what_is_masked_counts_nowhere_and_nan_stays_in_its_row(backend):
    divergence, slopes = spoilt_rows(LINEAR_DISTILL.named(named(backend)))
    # A teacher's masked entries, and the student's too; the student's alone; NaN of either.
    assert divergence[:2].isfinite().all() and divergence[2] == math.inf and divergence[3:5].isnan().all()
    assert slopes.isnan().any(1).tolist() == [False, False, False, True, True, False]


def test_the_logarithm_of_a_mean_is_exact_to_a_few_units(backend):
    """Where several teachers' probabilities are added up: from what nearly underflows to 1."""
    kernels, count = LINEAR_DISTILL.named(named(backend)), 4000
    q_C = torch.logspace(-37.9, -0.001, count)
    # All others' part is q, the last teacher expects nothing, and log p' is 0.
    divergence_C, student_C4 = torch.zeros(count), torch.zeros(count, 4)
    teacher_C3 = torch.tensor([0.0, 0.5, math.log(0.5)]).expand(count, 3).contiguous()
    kernels.differentiate(
        torch.zeros(count, 1), torch.full((count, 1), -math.inf), q_C[:, None].clone(), student_C4, teacher_C3,
        torch.full((count,), -1), 0, Slopes(inverse_temperature=1.0, pull=0.0, label=0.0), divergence_C, torch.float32,
    )  # fmt: skip
    exact_C = q_C.double() * q_C.double().log()
    torch.testing.assert_close(divergence_C.double(), exact_C, rtol=4e-7, atol=1e-38)
