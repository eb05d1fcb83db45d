"""linear_cross_entropy: gradients made in the forward pass are those of the definition, and nothing else changes."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from synpro_kernels import CrossEntropy, linear_cross_entropy, linear_logprob, linear_logprob_definition
from synpro_kernels.ops.linear_logprob import block_sizes
from synpro_kernels.ops.linear_logprob.cached_logits import CachedLogits
from synpro_kernels.ops.linear_logprob.dispatch import LINEAR_LOGPROB
from synpro_kernels.ops.linear_logprob.types import LogitSettings, Shard
from synpro_kernels.testing import assert_as_accurate
from synpro_kernels.testing.layers import Case, drawn, make_case, plain

Z = 0.05


def by_definition(case: Case, leaves: list[Tensor], mask: Tensor | None, reduction: str, score: Callable) -> Tensor:
    bias = leaves[2] if len(leaves) == 3 else None
    found = score(leaves[0], leaves[1], case.target_T, bias, **case.options)
    weights = torch.ones_like(found.logprob) if mask is None else mask.to(found.logprob.dtype)
    weights = weights * (case.target_T != -100)
    loss = ((-found.logprob + Z * found.logsumexp.square()) * weights).sum()
    return loss / weights.sum() if reduction == "mean" else loss


def definition(hidden: Tensor, weight: Tensor, target: Tensor, bias: Tensor | None, **options: float):
    return linear_logprob_definition(hidden, weight, target, bias=bias, **options)


def fused(case: Case, leaves: list[Tensor], mask: Tensor | None, reduction: str) -> CrossEntropy:
    bias = leaves[2] if len(leaves) == 3 else None
    return linear_cross_entropy(
        leaves[0], leaves[1], case.target_T, bias=bias, z_loss=Z, loss_mask=mask, reduction=reduction, **case.options
    )


def with_gradients(loss: Tensor, leaves: list[Tensor]) -> list[Tensor]:
    return [loss.detach(), *torch.autograd.grad(3.0 * loss, leaves)]


@pytest.mark.parametrize("reduction", ["sum", "mean"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("variant", ["bare", "mapped", "some ignored", "extreme"])
def test_loss_and_gradients_are_as_accurate_as_plain_pytorch(backend, variant, dtype, reduction):
    for tokens, vocab in ((1, 7), (90, 2001)):
        case = make_case(tokens, vocab, dtype, variant)
        for mask in (None, torch.linspace(0.0, 2.0, tokens), torch.arange(tokens) % 2 == 0):
            exact, usual, mine = (case.leaves(torch.float64), case.leaves(dtype), case.leaves(dtype))
            truth = with_gradients(by_definition(case, exact, mask, reduction, definition), exact)
            expected = with_gradients(by_definition(case, usual, mask, reduction, plain), usual)
            found = with_gradients(fused(case, mine, mask, reduction).loss, mine)
            if mask is not None and not (mask.double() * (case.target_T != -100)).any():
                continue  # no weight at all: a mean of nothing, which has a test of its own
            for name, f, e, t in zip(["loss", "hidden", "weight", "bias"], found, expected, truth, strict=False):
                assert_as_accurate(f, e, t, f"{variant} {tokens}x{vocab} {name}")


def test_more_tokens_than_a_chunk_change_nothing(backend, monkeypatch):
    case = make_case(250, 2001, torch.float32, "mapped")
    whole = with_gradients(fused(case, leaves := case.leaves(torch.float32), None, "sum").loss, leaves)
    monkeypatch.setattr(block_sizes, "cached", lambda shard, vocab: (64, 700))
    cut = with_gradients(fused(case, leaves := case.leaves(torch.float32), None, "sum").loss, leaves)
    truth = with_gradients(by_definition(case, e := case.leaves(torch.float64), None, "sum", definition), e)
    for a, b, t in zip(cut, whole, truth, strict=True):
        assert_as_accurate(a, b, t, "in chunks")


def test_none_gives_each_token_its_loss_and_its_gradient(backend):
    case = make_case(30, 201, torch.float32, "some ignored")
    mask = torch.linspace(0.0, 2.0, 30)
    leaves = case.leaves(torch.float32)
    found = fused(case, leaves, mask, "none")
    assert found.loss.shape == (30,) and (found.loss[case.target_T == -100] == 0).all()
    total = fused(case, leaves, mask, "sum")
    torch.testing.assert_close(found.loss.sum(), total.loss)
    torch.testing.assert_close(found.cross_entropy.sum(), total.cross_entropy)
    one, other = (torch.autograd.grad(loss, leaves) for loss in (found.loss.sum(), total.loss))
    for a, b in zip(one, other, strict=True):
        torch.testing.assert_close(a, b)


def test_reported_parts_add_up_and_carry_no_gradient(backend):
    case = make_case(30, 201, torch.float32, "bare")
    for reduction in ("sum", "mean", "none"):
        found = fused(case, case.leaves(torch.float32), None, reduction)
        assert found.loss.requires_grad and not found.cross_entropy.requires_grad and not found.z_loss.requires_grad
        torch.testing.assert_close(found.loss.detach(), found.cross_entropy + found.z_loss)
        assert (found.z_loss > 0).all()


def test_without_gradients_none_are_made(backend, monkeypatch):
    case = make_case(30, 201, torch.float32, "bare")

    def refuse(*_args, **_kwargs):
        raise AssertionError("a gradient was computed")

    monkeypatch.setattr(CachedLogits, "add_gradients", refuse)
    with torch.no_grad():
        quiet = fused(case, case.leaves(torch.float32), None, "sum")
    assert not quiet.loss.requires_grad
    frozen = linear_cross_entropy(case.hidden_TH, case.weight_VH, case.target_T, z_loss=Z, reduction="sum")
    assert torch.equal(frozen.loss, quiet.loss.detach()) and not frozen.loss.requires_grad
    with pytest.raises(AssertionError, match="was computed"):
        fused(case, case.leaves(torch.float32), None, "sum")


def test_frozen_tensors_get_no_gradient_and_the_others_the_same(backend):
    case = make_case(30, 201, torch.float32, "bare")
    hidden, weight = case.leaves(torch.float32)
    both = torch.autograd.grad(fused(case, [hidden, weight], None, "sum").loss, [hidden, weight])
    only_hidden = torch.autograd.grad(fused(case, [hidden, weight.detach()], None, "sum").loss, hidden)
    only_weight = torch.autograd.grad(fused(case, [hidden.detach(), weight], None, "sum").loss, weight)
    assert torch.equal(both[0], only_hidden[0]) and torch.equal(both[1], only_weight[0])


def test_no_token_at_all_is_a_loss_of_zero_and_a_mean_of_nan(backend):
    case = make_case(9, 33, torch.float32, "all ignored")
    leaves = case.leaves(torch.float32)
    loss = fused(case, leaves, None, "sum").loss
    assert loss == 0 and all((grad == 0).all() for grad in torch.autograd.grad(loss, leaves))
    mean = fused(case, leaves, None, "mean").loss
    assert mean.isnan() and all((grad == 0).all() for grad in torch.autograd.grad(mean, leaves))
    assert fused(case, leaves, torch.zeros(9), "sum").loss == 0


@pytest.mark.parametrize("reduction", ["sum", "mean", "none"])
def test_tokens_of_weight_zero_may_hold_anything(backend, reduction):
    case = make_case(9, 33, torch.float32, "bare")
    mask = torch.linspace(0.0, 1.0, 9)
    clean = with_gradients(fused(case, leaves := case.leaves(torch.float32), mask, reduction).loss.sum(), leaves)
    case.hidden_TH[0], case.target_T[0] = float("nan"), 10_000
    case.target_T[4], ignored = -100, mask.clone()
    ignored[4] = float("nan")  # the weight of an ignored token does not matter either
    leaves = case.leaves(torch.float32)
    found = with_gradients(fused(case, leaves, ignored, reduction).loss.sum(), leaves)
    assert all(torch.isfinite(each).all() for each in [*found, *clean])
    case.hidden_TH[0] = 0.0
    mask[4] = 0.0
    again = with_gradients(fused(case, leaves := case.leaves(torch.float32), mask, reduction).loss.sum(), leaves)
    assert all(torch.equal(a, b) for a, b in zip(found, again, strict=True))


def test_a_derivative_of_the_gradient_is_refused(backend):
    leaves = (case := make_case(9, 33, torch.float32, "bare")).leaves(torch.float32)
    for loss in (fused(case, leaves, None, "sum").loss, linear_logprob(leaves[0], leaves[1], case.target_T).logprob):
        with pytest.raises(RuntimeError, match="create_graph is not supported"):
            torch.autograd.grad(loss.sum(), leaves, create_graph=True)


def test_under_a_compiler_the_loss_is_the_same(backend):
    case = make_case(30, 201, torch.float32, "some ignored")
    leaves = case.leaves(torch.float32)

    def loss(hidden: Tensor) -> Tensor:
        return 2.0 * linear_cross_entropy(hidden * 2.0, leaves[1], case.target_T, reduction="sum").loss

    compiled = torch.compile(loss, backend="aot_eager")(leaves[0])
    plain_grad, grad = (torch.autograd.grad(value, leaves) for value in (loss(leaves[0]), compiled))
    assert all(torch.allclose(a, b) for a, b in zip(plain_grad, grad, strict=True))


def test_a_second_backward_is_refused(backend):
    leaves = (case := make_case(9, 33, torch.float32, "bare")).leaves(torch.float32)
    loss = fused(case, leaves, None, "sum").loss
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="backward can run once"):
        loss.backward()


def test_a_bf16_weights_gradient_reaches_main_grad_without_rounding(backend):
    case = make_case(64, 301, torch.bfloat16, "bare")
    hidden, leaf = case.leaves(torch.bfloat16)
    weight: Any = leaf
    weight.main_grad = torch.ones(weight.shape)
    for tied in (False, True):
        weight.main_grad.fill_(1.0)
        weight.grad_added_to_main_grad, weight.zero_out_wgrad, weight.grad = False, tied, None
        loss = linear_cross_entropy(hidden, weight, case.target_T, reduction="sum", into_main_grad=True).loss
        (0.5 * loss).backward()
        exact = case.leaves(torch.float64)
        truth = torch.autograd.grad(0.5 * by_definition_ce(case, exact), exact[1])[0]
        assert weight.grad_added_to_main_grad
        # On a GPU the products' operands are bf16, the sums and the result are not.
        allowed = 2**-9 if backend == "cuda" else 1e-5
        assert (weight.main_grad - 1.0 - truth).abs().max() < allowed * truth.abs().max() + 1e-6
        assert not torch.equal(weight.main_grad, weight.main_grad.bfloat16().float())
        delivered: Any = leaf.grad
        assert not tied or not delivered.any()  # what another use of a tied weight adds must survive


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("variant", ["bare", "mapped", "some ignored", "all ignored"])
@pytest.mark.parametrize("chunk", [None, (64, 700)], ids=["whole", "in chunks"])
def test_slopes_along_directions_are_those_of_the_weights_gradient(backend, chunk, variant, dtype, monkeypatch):
    if chunk is not None:
        monkeypatch.setattr(block_sizes, "cached", lambda shard, vocab: chunk)
    case, exact = make_case(90, 2001, dtype, variant), make_case(90, 2001, dtype, variant).leaves(torch.float64)
    along = drawn((2, *case.weight_VH.shape), 0).to(dtype)
    mask = torch.linspace(0.0, 2.0, 90)
    options = {"z_loss": Z, "loss_mask": mask, "reduction": "sum", **case.options}

    def run(**asked):
        leaves = case.leaves(dtype)
        bias = leaves[2] if len(leaves) == 3 else None
        found = linear_cross_entropy(leaves[0], leaves[1], case.target_T, bias=bias, **options, **asked)
        return found, torch.autograd.grad(found.loss, leaves)

    unasked, gradients = run()
    assert unasked.along is None
    truth_VH = torch.autograd.grad(by_definition(case, exact, mask, "sum", definition), exact)[1]
    truth_K = (truth_VH * along.double()).sum((1, 2))
    formed_K = (gradients[1].double() * along.double()).sum((1, 2))  # in bf16, of the gradient as it was rounded
    for tokens in (False, True):
        found, same = run(along=along, along_tokens=tokens)
        assert torch.equal(found.loss, unasked.loss) and all(map(torch.equal, same, gradients))
        total_K = found.along.double().sum(1) if tokens else found.along
        scale = truth_VH.norm() * along.double().norm() / len(along) ** 0.5
        assert (total_K - truth_K).abs().max() <= max((formed_K - truth_K).abs().max() * 2, 1e-7 * scale)
        assert not tokens or not found.along[:, case.target_T == -100].any()


def test_a_tokens_slope_is_that_of_its_own_loss(backend):
    case = make_case(12, 201, torch.float32, "some ignored")
    along = drawn((1, *case.weight_VH.shape), 0)
    target = case.target_T.view(3, 4)
    hidden, weight = case.hidden_TH.view(3, 4, -1), case.weight_VH
    with torch.no_grad():
        found = linear_cross_entropy(
            hidden, weight, target, z_loss=Z, reduction="sum", along=along, along_tokens=True, **case.options
        )
    exact = weight.double().requires_grad_()
    scored = linear_logprob_definition(hidden.double(), exact, target, **case.options)
    for at in torch.cartesian_prod(torch.arange(3), torch.arange(4)).tolist():
        loss = (-scored.logprob + Z * scored.logsumexp.square())[tuple(at)]
        truth = (torch.autograd.grad(loss, exact, retain_graph=True)[0] * along[0].double()).sum()
        assert float(found.along[(0, *at)]) == pytest.approx(float(truth), rel=1e-5, abs=1e-5)


def test_a_frozen_weights_slope_is_found_and_its_gradient_is_not_delivered(backend):
    case = make_case(30, 201, torch.float32, "bare")
    hidden, weight = case.leaves(torch.float32)
    along = drawn((1, *weight.shape), 0)
    options = {"z_loss": Z, "reduction": "sum", "along": along}
    trained = linear_cross_entropy(hidden, weight, case.target_T, **options)
    frozen = linear_cross_entropy(hidden, weight.detach(), case.target_T, **options)
    assert torch.equal(trained.along, frozen.along)
    assert torch.equal(*(torch.autograd.grad(found.loss, hidden)[0] for found in (trained, frozen)))


def by_definition_ce(case: Case, leaves: list[Tensor]) -> Tensor:
    return -linear_logprob_definition(leaves[0], leaves[1], case.target_T).logprob.sum()


def test_two_runs_are_bitwise_equal(backend):
    case = make_case(250, 2001, torch.float32, "bare")
    runs = [with_gradients(fused(case, leaves := case.leaves(torch.float32), None, "sum").loss, leaves) for _ in "ab"]
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


def test_cached_blocks_stay_within_their_budget():
    shard = make_shard(tokens=4096, vocab=49152)
    tokens, width = block_sizes.cached(shard, shard.vocab)
    assert tokens >= 64 and tokens * shard.vocab * 4 <= 64 << 20 and width <= shard.vocab


def make_shard(tokens: int, vocab: int) -> Shard:
    hidden, weight = torch.empty(tokens, 8, device="meta"), torch.empty(vocab, 8, device="meta")
    settings = LogitSettings(temperature=1.0, softcap=None, ignore_index=-100, vocab_start=0)
    column = torch.empty(tokens, dtype=torch.int64, device="meta")
    kernels = LINEAR_LOGPROB.named("csrc")
    return Shard(hidden_TH=hidden, weight_VH=weight, bias_V=None, column_T=column, settings=settings, kernels=kernels)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"z_loss": -1.0}, "z_loss: expected a finite number >= 0"),
        ({"z_loss": float("nan")}, "z_loss: expected a finite number >= 0"),
        ({"reduction": "avg"}, "reduction: expected 'mean', 'sum' or 'none'"),
        ({"loss_mask": torch.ones(9, requires_grad=True)}, "loss_mask: expected a tensor without requires_grad"),
        ({"loss_mask": torch.ones(8)}, r"loss_mask: expected shape \(9,\)"),
        ({"into_main_grad": True}, "into_main_grad: expected a weight with main_grad"),
        ({"target": torch.full((9,), 33)}, r"target: 33 is outside \[0, 33\)"),
        ({"temperature": 0.0}, "temperature: expected"),
        ({"along": torch.zeros(33, 40)}, r"along: expected floating \[K, 33, \d+\], got"),
        ({"along": torch.zeros(1, 32, 40)}, r"along: expected floating \[K, 33, \d+\], got"),
        ({"along": make_case(9, 33, torch.float32, "bare").weight_VH[None]}, "expected 'sum' with along, got 'mean'"),
    ],
)
def test_wrong_arguments_are_named(changed, message):
    case = make_case(9, 33, torch.float32, "bare")
    arguments = {"hidden": case.hidden_TH, "weight": case.weight_VH, "target": case.target_T, **changed}
    with pytest.raises(ValueError, match=message):
        linear_cross_entropy(**arguments)
