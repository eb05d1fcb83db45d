"""TileSkip: what is dropped is below the threshold, is counted, and bounds the gradient's error."""

import pytest
import torch

from synpro_kernels import TileSkip, linear_logprob, linear_logprob_definition
from synpro_kernels.testing.layers import Case, make_case


def a_case() -> Case:
    case = make_case(600, 2001, torch.float32, "some ignored")
    case.hidden_TH *= 4.0  # a peaked softmax, of which most columns have next to no gradient
    return case


def gradients(skip: TileSkip | None) -> list[torch.Tensor]:
    hidden, weight = a_case().leaves(torch.float32)
    found = linear_logprob(hidden, weight, a_case().target_T, entropy=True, skip=skip)
    return list(torch.autograd.grad(found.logprob.sum() + 0.1 * found.entropy.sum(), [hidden, weight]))


def logit_gradients() -> torch.Tensor:
    hidden, weight = a_case().leaves(torch.float64)
    logits = (hidden @ weight.t()).detach().requires_grad_()
    eye = torch.eye(a_case().weight_VH.shape[0], dtype=torch.float64)
    found = linear_logprob_definition(logits, eye, a_case().target_T, entropy=True)
    return torch.autograd.grad(found.logprob.sum() + 0.1 * found.entropy.sum(), logits)[0]


def test_a_threshold_of_zero_drops_nothing(backend):
    skip = TileSkip(0.0)
    for a, b in zip(gradients(skip), gradients(None), strict=True):
        torch.testing.assert_close(a, b)
    assert skip.dropped_share == 0.0 and skip.skipped == 0 and skip.columns > 0


def test_the_dropped_share_is_what_is_missing(backend):
    skip = TileSkip(1e-3)
    approximate, exact = gradients(skip), gradients(None)
    assert 0 < skip.skipped < skip.columns and 0.0 < skip.dropped_share < 0.5
    dz_TV = logit_gradients()
    total = dz_TV.abs().sum()
    missing = approximate[0] - exact[0]
    assert missing.abs().max() > 0
    # Each token's error is at most the mass dropped times the largest weight.
    bound = skip.dropped_share * total * a_case().weight_VH.abs().max()
    assert missing.abs().sum(1).max() <= bound * a_case().weight_VH.shape[1]
    gone = (approximate[1] == 0).all(1) & (exact[1] != 0).any(1)
    assert gone.any() and dz_TV[:, gone].abs().max() < 1e-3


def test_the_share_counts_every_backward_that_used_it():
    skip = TileSkip(1e-3)
    gradients(skip)
    once, columns = skip.dropped_share, skip.columns
    gradients(skip)
    assert skip.dropped_share == pytest.approx(once) and skip.columns == 2 * columns


def test_a_wrong_threshold_is_named():
    with pytest.raises(ValueError, match="below: expected a finite number >= 0"):
        TileSkip(-1.0)
