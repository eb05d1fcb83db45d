"""Low-rank and fp8 directions: the error they state is the error they make, and scores stay within its bound."""

import pytest
import torch
from torch import Tensor

from synpro_kernels.ops.grad_dot import (
    Fp8Direction,
    LowRankDirection,
    grad_dot,
    grad_dot_definition,
    low_rank,
    to_fp8,
)
from synpro_kernels.ops.grad_dot.definition import segment_gradients_definition
from synpro_kernels.testing import assert_as_accurate

T, I, O, S = 90, 72, 40, 3  # noqa: E741


def tokens(dtype: torch.dtype, outputs: int = O) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    x, grad, ids = torch.randn(T, I), torch.randn(T, outputs), torch.randint(-1, S, (T,))
    return x.to(dtype), grad.to(dtype), ids


def decaying(*shape: int) -> Tensor:
    """Matrices whose singular values fall as 1 / i^2, with a row of zeros."""
    torch.manual_seed(1)
    u, s, v = torch.linalg.svd(torch.randn(shape), full_matrices=False)
    matrix = (u * torch.arange(1, s.shape[-1] + 1).double().pow(-2).float()) @ v
    matrix[..., 3, :] = 0
    return matrix


def decoded(direction: LowRankDirection | Fp8Direction) -> Tensor:
    if isinstance(direction, LowRankDirection):
        return direction.left.double() @ direction.right.double()
    return direction.values.double() * direction.scale.double()[..., None]


FORMS = {
    "rank 8": lambda v: low_rank(v, 8),
    "rank 1": lambda v: low_rank(v, 1),
    "fp8": to_fp8,
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("shape", [(O, I), (2, O, I), (I + 9, I)], ids=str)
def test_a_score_is_that_of_the_stored_direction(backend: str, shape: tuple[int, ...], dtype: torch.dtype, form: str):
    x, grad, ids = tokens(dtype, shape[-2])
    stored = FORMS[form](decaying(*shape).to(dtype))
    found = grad_dot(x, grad, stored, ids, segments=S)
    truth = grad_dot_definition(x.double(), grad.double(), decoded(stored), ids, segments=S)
    assert found.shape == (*shape[:-2], S)
    if dtype == torch.float64:
        torch.testing.assert_close(found, truth)
    else:
        plain = grad_dot_definition(x, grad, decoded(stored).float(), ids, segments=S)
        assert_as_accurate(found, plain, truth, form)


@pytest.mark.parametrize("form", FORMS)
def test_the_stated_error_is_the_error_and_bounds_the_scores(form: str):
    x, grad, ids = tokens(torch.float64)
    direction = decaying(2, O, I)
    stored = FORMS[form](direction)
    lost = (decoded(stored) - direction.double()).flatten(1).norm(dim=1)
    size = direction.double().flatten(1).norm(dim=1)
    torch.testing.assert_close(stored.relative_error.double(), lost / size, rtol=1e-4, atol=1e-7)

    gradients = segment_gradients_definition(x, grad, ids, segments=S).flatten(1).norm(dim=1)
    exact = grad_dot_definition(x, grad, direction.double(), ids, segments=S)
    off = grad_dot_definition(x, grad, decoded(stored), ids, segments=S) - exact
    assert (off.abs() <= 1.001 * lost[:, None] * gradients).all() and off.abs().max() > 0


def test_low_rank_is_near_the_best_of_its_rank_repeats_and_leaves_the_generator_alone():
    direction = decaying(O, I)
    state = torch.get_rng_state()
    found, again = low_rank(direction, 8), low_rank(direction, 8)
    assert torch.equal(found.left, again.left) and torch.equal(torch.get_rng_state(), state)
    singular = torch.linalg.svdvals(direction.double())
    best = float(singular[8:].norm() / singular.norm())
    assert best * 0.999 <= float(found.relative_error) <= best * 1.001
    assert float(low_rank(direction, O).relative_error) < 1e-6


def test_fp8_rounds_each_entry_to_a_sixteenth_and_decodes_exactly_to_bf16():
    torch.manual_seed(0)
    direction = torch.randn(O, I) * torch.logspace(-20, 15, O)[:, None]
    stored = to_fp8(direction)
    values = decoded(stored)
    normal = stored.values.double().abs() >= 2**-6
    relative = ((values - direction) / direction).abs()[normal]
    assert relative.max() <= 2**-4 and normal.double().mean() > 0.99
    assert torch.equal(values.bfloat16().double(), values)
    top = stored.values.double().abs().amax(1)
    assert (top > 208).all() and (top <= 448).all()
    assert 0.02 < float(stored.relative_error) < 0.03  # what README.md states for normal entries


def test_fp8_scores_are_far_within_the_bound():
    """Errors of single entries mostly cancel: README.md states 0.0016 for a layer like this one."""
    x, grad, ids = tokens(torch.float64)
    direction = grad.t() @ x  # as a reference gradient: it shares its tokens' directions
    exact = grad_dot(x, grad, direction, ids, segments=S)
    found = grad_dot(x, grad, to_fp8(direction), ids, segments=S)
    assert float((found - exact).norm() / exact.norm()) < 0.005


def test_directions_of_zeros_stay_zero():
    zeros = torch.zeros(O, I)
    for stored in (low_rank(zeros, 2), to_fp8(zeros)):
        assert (decoded(stored) == 0).all() and float(stored.relative_error) == 0.0


def test_wrong_arguments_are_named():
    x, grad, ids = tokens(torch.float32)
    good, fp8 = low_rank(decaying(O, I), 4), to_fp8(decaying(O, I))

    def score(direction: object) -> Tensor:
        return grad_dot(x, grad, direction, ids, segments=S)

    def factors(left: Tensor, right: Tensor) -> LowRankDirection:
        return LowRankDirection(left=left, right=right, relative_error=torch.zeros(()))

    def bytes_of(values: Tensor, scale: Tensor) -> Fp8Direction:
        return Fp8Direction(values=values, scale=scale, relative_error=torch.zeros(()))

    for message, call in {
        r"rank: expected 1 to 40 for direction \(40, 72\), got 41": lambda: low_rank(decaying(O, I), 41),
        "iterations: expected >= 0": lambda: low_rank(decaying(O, I), 4, iterations=-1),
        "direction: expected finite": lambda: to_fp8(decaying(O, I) / 0),
        "direction: expected floating": lambda: to_fp8(torch.ones(3)),
        r"direction.left: expected \[40, 4\]": lambda: score(factors(good.left[1:], good.right)),
        r"direction.right: expected \[4, 72\]": lambda: score(factors(good.left, good.right[:, 1:])),
        "direction.right: expected .* directions like left": lambda: score(factors(good.left, good.right[None])),
        "direction.left: expected torch.float32": lambda: score(factors(good.left.double(), good.right)),
        r"direction: expected \[40, 72\]": lambda: score(bytes_of(fp8.values[1:], fp8.scale[1:])),
        r"direction.scale: expected fp32 \(40,\)": lambda: score(bytes_of(fp8.values, fp8.scale[1:])),
        "direction.values: expected float8_e4m3fn": lambda: score(bytes_of(fp8.values.float(), fp8.scale)),
        "left: requires grad": lambda: score(factors(good.left.clone().requires_grad_(), good.right)),
    }.items():
        with pytest.raises(ValueError, match=message):
            call()
