"""`draw_tokens` on every path: each token has its slice of the numbers, and its own log-probability."""

import math

import pytest
import torch
from torch import Tensor

from synpro_kernels import draw_tokens
from synpro_kernels.testing import assert_as_accurate

SHAPES = pytest.mark.parametrize("vocab", [1, 2, 255, 256, 257, 5000], ids=str)


def problem(rows: int, vocab: int, scale: float = 4.0) -> Tensor:
    torch.manual_seed(0)
    return scale * torch.randn(rows, vocab)


@SHAPES
@pytest.mark.parametrize("temperature", [0.3, 1.0, 1.7])
def test_tokens_are_those_of_an_fp64_distribution_and_log_probabilities_as_accurate(backend, vocab, temperature):
    logits = problem(64, vocab)
    uniform = torch.rand(64, dtype=torch.float64)
    token, logprob = draw_tokens(logits, uniform, temperature)
    exact = torch.log_softmax(logits.double() / temperature, -1)
    cumulative = exact.exp().cumsum(-1)
    above = cumulative.gather(1, token[:, None])[:, 0]
    below = above - exact.exp().gather(1, token[:, None])[:, 0]
    # fp32 exponentials: a border is known to some 1e-6.
    assert bool((below - 1e-6 <= uniform).all()) and bool((uniform <= above + 1e-6).all())
    truth = exact.gather(1, token[:, None])[:, 0]
    plain = torch.log(torch.softmax(logits / temperature, -1)).gather(1, token[:, None])[:, 0]
    assert_as_accurate(logprob, plain, truth, f"{vocab}", terms=float(logits.abs().max()) / temperature)


def test_an_impossible_token_is_never_drawn_whatever_the_number(backend):
    logits = torch.full((5, 700), -1e4)
    logits[:, [3, 300]] = torch.tensor([1.0, 1.0])
    just_below_one = math.nextafter(1.0, 0.0)
    uniform = torch.tensor([0.0, 0.4999, 0.5001, 0.9, just_below_one], dtype=torch.float64)
    token, logprob = draw_tokens(logits, uniform, 1.0)
    assert token.tolist() == [3, 3, 300, 300, 300]
    torch.testing.assert_close(logprob, torch.full((5,), -math.log(2.0)))


def test_columns_of_a_wider_matrix_are_drawn_from_alone(backend):
    logits = problem(7, 900)
    uniform = torch.rand(7, dtype=torch.float64)
    found = draw_tokens(logits[:, :500], uniform, 1.0)
    expected = draw_tokens(logits[:, :500].contiguous(), uniform, 1.0)
    assert torch.equal(found[0], expected[0]) and torch.equal(found[1], expected[1])
    spread = torch.stack((logits, logits), -1).flatten(1)[:, ::2]
    assert torch.equal(draw_tokens(spread[:, :500], uniform, 1.0)[0], expected[0])


def test_every_token_comes_as_often_as_its_probability_says(backend):
    n, logits = 20000, problem(1, 300, 1.0)
    uniform = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    token, _ = draw_tokens(logits.expand(n, -1).contiguous(), uniform, 1.0)
    share = torch.bincount(token, minlength=300).double() / n
    # Numbers at equal distances: a slice holds as many as fit, one more or less at either end.
    torch.testing.assert_close(share, torch.softmax(logits[0].double(), -1), rtol=0, atol=1.01 / n)
    assert bool((token.diff() >= 0).all())


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ((torch.zeros(2, 0), torch.zeros(2).double(), 1.0), r"logits_BV: expected fp32 \[B, V >= 1\]"),
        ((torch.zeros(2, 3).half(), torch.zeros(2).double(), 1.0), "logits_BV: expected fp32"),
        ((torch.zeros(2, 3), torch.zeros(2), 1.0), r"uniform_B: expected torch.float64 \[2\]"),
        ((torch.zeros(2, 3), torch.zeros(3).double(), 1.0), "uniform_B: expected"),
        ((torch.zeros(2, 3), torch.zeros(2).double(), 0.0), "temperature: expected > 0"),
    ],
)
def test_arguments_that_do_not_fit_are_named(arguments, named):
    with pytest.raises(ValueError, match=named):
        draw_tokens(*arguments)
