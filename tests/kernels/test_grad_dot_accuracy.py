"""grad_dot, its companions and the closed forms against per-example autograd in fp64, at odd shapes.

T tokens, I inputs, O outputs, K directions, S segments, V vocabulary.
"""

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from synpro_kernels.ops.grad_dot import (
    bias_dot,
    bias_dot_definition,
    embedding_dot,
    embedding_dot_definition,
    grad_dot,
    grad_dot_definition,
    grad_dot_prefix,
    grad_dot_prefix_definition,
    pairwise_grad_dot,
    pairwise_grad_dot_definition,
    scale_dot,
    scale_dot_definition,
)
from synpro_kernels.ops.grad_dot.definition import grad_dot_tokens_definition
from synpro_kernels.testing import assert_as_accurate
from synpro_kernels.testing.layers import drawn

SEGMENTS, DIRECTIONS = 5, 3
TOKENS = [1, 7, 250]
WIDTHS = [(1, 1), (33, 120), (120, 33), (120, 120)]
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]


def assert_accurate(found: Tensor, plain: Tensor, truth: Tensor, what: str) -> None:
    """As accurate as the plain definition; in fp64, where the oracle rounds too, to twelve digits of the largest."""
    if found.dtype != torch.float64:
        assert_as_accurate(found, plain, truth, what)
    elif truth.numel():
        torch.testing.assert_close(found, truth, rtol=0, atol=1e-12 * float(truth.abs().max()), msg=what)


@dataclass
class Layer:
    """One linear layer's tokens. Segment 2 is empty, ids come in any order, and every row of id -1 is NaN."""

    x_TI: Tensor
    grad_TO: Tensor
    direction_KOI: Tensor
    ids_T: Tensor

    def double(self) -> "Layer":
        return Layer(self.x_TI.double(), self.grad_TO.double(), self.direction_KOI.double(), self.ids_T)

    def autograd(self) -> Tensor:
        """G [S, O, I] in fp64: the weight gradient of each segment alone."""
        layer = self.double()
        weight = torch.zeros(layer.direction_KOI.shape[1:], dtype=torch.float64, requires_grad=True)
        gradients = []
        for i in range(SEGMENTS):
            own = layer.ids_T == i
            loss = (F.linear(layer.x_TI[own], weight) * layer.grad_TO[own]).sum()
            gradients.append(torch.autograd.grad(loss, weight)[0])
        return torch.stack(gradients)


def make_layer(tokens: int, widths: tuple[int, int], dtype: torch.dtype) -> Layer:
    outputs, inputs = widths
    seed = tokens * 1000 + outputs
    x, grad = (drawn((tokens, width), seed + i) for i, width in enumerate((inputs, outputs)))
    direction = drawn((DIRECTIONS, outputs, inputs), seed + 2)
    ids = torch.tensor([0, 1, 3, 4, -1])[drawn((tokens,), seed + 3, below=5)]
    outside = (ids == -1)[:, None]
    return Layer(
        x.masked_fill(outside, torch.nan).to(dtype), grad.masked_fill(outside, torch.nan).to(dtype),
        direction.to(dtype), ids,
    )  # fmt: skip


def every_layer() -> Callable:
    def decorate(test: Callable) -> Callable:
        for name, values in (("dtype", DTYPES), ("widths", WIDTHS), ("tokens", TOKENS)):
            test = pytest.mark.parametrize(name, values, ids=str)(test)
        return test

    return decorate


@every_layer()
def test_grad_dot_equals_per_example_autograd(backend: str, tokens: int, widths: tuple[int, int], dtype: torch.dtype):
    layer = make_layer(tokens, widths, dtype)
    truth_KS = torch.einsum("soi,koi->ks", layer.autograd(), layer.direction_KOI.double())
    tensors = layer.x_TI, layer.grad_TO, layer.direction_KOI
    scores, shares = grad_dot(*tensors, layer.ids_T, segments=SEGMENTS, per_token=True)
    assert_accurate(scores, grad_dot_definition(*tensors, layer.ids_T, segments=SEGMENTS), truth_KS, "scores")
    assert (scores[:, 2] == 0).all() and (shares[:, layer.ids_T < 0] == 0).all()
    own = layer.ids_T >= 0
    true_shares = grad_dot_tokens_definition(*(tensor.double() for tensor in tensors))
    assert_accurate(shares[:, own], grad_dot_tokens_definition(*tensors)[:, own], true_shares[:, own], "shares")


@every_layer()
def test_pairwise_equals_the_gram_matrix_of_per_example_autograd(
    device: str, tokens: int, widths: tuple[int, int], dtype: torch.dtype
):
    layer = make_layer(tokens, widths, dtype)
    gradients_SG = layer.autograd().flatten(1)
    found = pairwise_grad_dot(layer.x_TI, layer.grad_TO, layer.ids_T, segments=SEGMENTS)
    plain = pairwise_grad_dot_definition(layer.x_TI, layer.grad_TO, layer.ids_T, segments=SEGMENTS)
    assert_accurate(found, plain, gradients_SG @ gradients_SG.t(), "products")
    assert torch.equal(found, found.t()) and (found[2] == 0).all()


@every_layer()
def test_prefix_scores_and_accumulates_as_per_example_autograd(
    backend: str, tokens: int, widths: tuple[int, int], dtype: torch.dtype
):
    layer = make_layer(tokens, widths, dtype)
    order = torch.argsort(layer.ids_T, stable=True)
    order = order[layer.ids_T[order] >= 0]  # here every token counts: the gradient of all of them is wanted
    ids = layer.ids_T[order]
    boundaries = [int((ids < i).sum()) for i in range(SEGMENTS + 1)]
    gradients = layer.autograd()
    x, grad = layer.x_TI[order], layer.grad_TO[order]
    before = torch.randn(widths, dtype=torch.promote_types(dtype, torch.float32))
    truth = torch.einsum("soi,koi->ks", gradients, layer.direction_KOI.double()), gradients.sum(0) + before
    accumulator = before.clone()
    scores, total = grad_dot_prefix(x, grad, layer.direction_KOI, boundaries, accumulator=accumulator)
    alone = grad_dot_prefix(x, grad, layer.direction_KOI[0], torch.tensor(boundaries))
    plain = grad_dot_prefix_definition(x, grad, layer.direction_KOI, boundaries, accumulator=before)
    assert total is accumulator
    for name, mine, usual, true in zip(("scores", "gradient"), (scores, total), plain, truth, strict=True):
        assert_accurate(mine, usual, true, name)
    assert_accurate(alone[0], plain[0][0], truth[0][0], "one direction, no accumulator")
    assert_accurate(alone[1], plain[1] - before, gradients.sum(0), "gradient from zero")


def test_blocks_join_without_a_seam(backend: str):
    """More tokens and columns than a block of any backend, none a multiple of it, and several groups of segments."""
    torch.manual_seed(0)
    tokens, outputs, inputs = 4500, 1100, 1030
    x, grad = torch.randn(tokens, inputs), torch.randn(tokens, outputs)
    direction = torch.randn(outputs, inputs)
    boundaries = [0, 10, 2500, 2500, 4490, 4500]
    ids = torch.bucketize(torch.arange(tokens), torch.tensor(boundaries[1:]), right=True)
    truth = grad_dot_definition(x.double(), grad.double(), direction.double(), ids, segments=SEGMENTS)
    usual = grad_dot_definition(x, grad, direction, ids, segments=SEGMENTS)
    assert_accurate(grad_dot(x, grad, direction, ids, segments=SEGMENTS), usual, truth, "scores")
    turned = grad_dot(grad, x, direction.t().contiguous(), ids, segments=SEGMENTS)
    assert_accurate(turned, usual, truth, "the other contraction order")
    scores, total = grad_dot_prefix(x, grad, direction, boundaries)
    plain = grad_dot_prefix_definition(x, grad, direction, boundaries)
    assert_accurate(scores, plain[0], truth, "prefix scores")
    assert_accurate(total, plain[1], grad.double().t() @ x.double(), "gradient")


@pytest.mark.parametrize("segments", [40, 1500], ids=["formed", "by tiles"])
def test_pairwise_blocks_join_without_a_seam(device: str, segments: int):
    torch.manual_seed(0)
    tokens, inputs, outputs = 2100, 2000 if segments == 40 else 24, 300 if segments == 40 else 12
    x, grad = torch.randn(tokens, inputs), torch.randn(tokens, outputs)
    ids = torch.randint(-1, segments, (tokens,))
    truth = pairwise_grad_dot_definition(x.double(), grad.double(), ids, segments=segments)
    usual = pairwise_grad_dot_definition(x, grad, ids, segments=segments)
    assert_accurate(pairwise_grad_dot(x, grad, ids, segments=segments), usual, truth, "products")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("tokens", TOKENS)
def test_closed_forms_equal_per_example_autograd(device: str, tokens: int, dtype: torch.dtype):
    """A table, a scale and a bias: y = scale * table[token] + bias, with one loss and one direction each."""
    layer = make_layer(tokens, (33, 33), dtype)
    vocabulary, grad, ids = 50, layer.grad_TO, layer.ids_T
    token = drawn((tokens,), tokens, below=vocabulary)
    table = drawn((vocabulary, 33), tokens + 1).to(dtype)
    scale, bias = (drawn((DIRECTIONS, 33), tokens + seed).to(dtype) for seed in (2, 3))
    rows = drawn((DIRECTIONS, vocabulary, 33), tokens + 4).to(dtype)

    leaves = [t.double().clone().requires_grad_() for t in (bias[0], scale[0], table)]
    truth = torch.zeros(3, DIRECTIONS, SEGMENTS, dtype=torch.float64)
    for i in range(SEGMENTS):
        own = ids == i
        y = leaves[1] * F.embedding(token[own], leaves[2]) + leaves[0]
        gradients = torch.autograd.grad((y * grad[own].double()).sum(), leaves)
        for form, (gradient, direction) in enumerate(zip(gradients, (bias, scale, rows), strict=True)):
            truth[form, :, i] = (gradient * direction.double()).flatten(1).sum(1)

    grad_rows = (grad.double() * scale[0].double()).to(
        dtype
    )  # what the table's lookup gets back, as the layer rounds it
    true_rows = embedding_dot_definition(grad_rows.double(), token, rows.double(), ids, segments=SEGMENTS)
    if dtype == torch.float64:
        torch.testing.assert_close(true_rows, truth[2])
    truth[2] = true_rows
    calls = [
        (bias_dot, bias_dot_definition, (grad, bias)),
        (scale_dot, scale_dot_definition, (table[token], grad, scale)),
        (embedding_dot, embedding_dot_definition, (grad_rows, token, rows)),
    ]
    for (function, reference, arguments), true_KS in zip(calls, truth, strict=True):
        scores, shares = function(*arguments, ids, segments=SEGMENTS, per_token=True)
        assert_accurate(scores, reference(*arguments, ids, segments=SEGMENTS), true_KS, function.__name__)
        assert shares.shape == (DIRECTIONS, tokens) and (shares[:, ids < 0] == 0).all()
        alone = function(*arguments[:-1], arguments[-1][1], ids, segments=SEGMENTS)
        torch.testing.assert_close(alone, scores[1])
