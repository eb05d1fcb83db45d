"""linear_policy_loss equals the policy loss on log-probs of the definition, and costs what has a gradient."""

import pytest
import torch
from torch import Tensor

from synpro_kernels import grpo_loss, linear_logprob_definition, linear_policy_loss
from synpro_kernels.ops.linear_logprob.cached_logits import CachedLogits
from synpro_kernels.testing import assert_as_accurate
from synpro_kernels.testing.layers import Case, make_case, plain

TOKENS, VOCAB = 90, 601


def a_case() -> Case:
    return make_case(TOKENS, VOCAB, torch.float32, "some ignored")


def rollout(dtype: torch.dtype) -> dict[str, Tensor]:
    torch.manual_seed(1)
    logprob = linear_logprob_definition(
        a_case().hidden_TH.double(), a_case().weight_VH.double(), a_case().target_T
    ).logprob
    return {
        "behaviour": (logprob + 0.4 * torch.randn(TOKENS)).to(dtype),
        "reference": (logprob + 0.4 * torch.randn(TOKENS)).to(dtype),
        "advantage": torch.randn(TOKENS).to(dtype),
        "token_weight": torch.rand(TOKENS).to(dtype),
    }


def expected(score, leaves: list[Tensor], dtype: torch.dtype, kl_beta: float) -> list[Tensor]:
    given, keep = rollout(dtype), a_case().target_T != -100
    scored = score(leaves[0], leaves[1], a_case().target_T, None)
    terms = grpo_loss(
        scored.logprob[keep], behaviour_N=given["behaviour"][keep], advantage_N=given["advantage"][keep],
        weight_N=given["token_weight"][keep], reference_N=given["reference"][keep] if kl_beta else None,
        clip_low=0.2, clip_high=0.28, kl_beta=kl_beta,
    )  # fmt: skip
    return [terms.objective, *torch.autograd.grad(terms.objective, leaves), terms.clipped, terms.ratio, terms.kl]


def found(leaves: list[Tensor], kl_beta: float) -> list[Tensor]:
    given = rollout(torch.float32)
    reference = given.pop("reference") if kl_beta else (given.pop("reference"), None)[1]
    terms, entropy = linear_policy_loss(
        leaves[0], leaves[1], a_case().target_T, **given, reference=reference, clip_high=0.28, kl_beta=kl_beta
    )
    assert entropy > 0 and not entropy.requires_grad
    return [terms.objective, *torch.autograd.grad(terms.objective, leaves), terms.clipped, terms.ratio, terms.kl]


@pytest.mark.parametrize("kl_beta", [0.0, 0.1])
def test_loss_and_gradients_are_as_accurate_as_plain_pytorch(backend, kl_beta):
    def by_definition(hidden: Tensor, weight: Tensor, target: Tensor, _bias: None):
        return linear_logprob_definition(hidden, weight, target)

    truth = expected(by_definition, a_case().leaves(torch.float64), torch.float64, kl_beta)
    usual = expected(plain, a_case().leaves(torch.float32), torch.float32, kl_beta)
    mine = found(a_case().leaves(torch.float32), kl_beta)
    for name, a, p, t in zip(
        ("objective", "hidden", "weight", "clipped", "ratio", "kl"), mine, usual, truth, strict=True
    ):
        assert_as_accurate(a, p, t, name)


def test_tokens_without_a_gradient_take_no_part_in_the_products(backend, monkeypatch):
    """A clipped token without a KL term, and one of zero advantage, cost their forward alone."""
    given = rollout(torch.float32)
    labelled = a_case().target_T != -100
    logprob = linear_logprob_definition(a_case().hidden_TH, a_case().weight_VH, a_case().target_T).logprob
    ratio = (logprob - given["behaviour"]).exp()
    given["advantage"][::2] = 0.0
    held = ((given["advantage"] > 0) & (ratio > 1.2)) | ((given["advantage"] < 0) & (ratio < 0.8))
    wanted = int((labelled & ~held & (given["advantage"] != 0)).sum())
    given.pop("reference")
    live, original = [], CachedLogits.add_gradients

    def add_gradients(self, coefficients_C5, into, shares=None):
        live.append(int((coefficients_C5[:, 2:] != 0).any(1).sum()))
        original(self, coefficients_C5, into, shares)

    monkeypatch.setattr(CachedLogits, "add_gradients", add_gradients)
    leaves = a_case().leaves(torch.float32)
    terms, _ = linear_policy_loss(leaves[0], leaves[1], a_case().target_T, **given)
    assert sum(live) == wanted and 0 < wanted < int(labelled.sum())
    grad = torch.autograd.grad(terms.objective, leaves[0])[0]
    assert (grad[~labelled | held | (given["advantage"] == 0)] == 0).all()


def gradients(**changed: Tensor) -> list[Tensor]:
    leaves = a_case().leaves(torch.float32)
    terms, _ = linear_policy_loss(
        leaves[0], leaves[1], a_case().target_T, **(rollout(torch.float32) | changed), kl_beta=0.1
    )
    return [terms.objective, *torch.autograd.grad(terms.objective, leaves)]


def test_a_ratio_beyond_all_floats_spoils_nothing():
    labelled = int((a_case().target_T != -100).nonzero()[0])
    for name, value in (("behaviour", -500.0), ("behaviour", 500.0), ("reference", 500.0), ("reference", -500.0)):
        given = rollout(torch.float32)
        given[name][labelled] = value
        given["advantage"][labelled] = 1.0
        assert all(torch.isfinite(each).all() for each in gradients(**given)), (name, value)


def test_a_token_of_weight_zero_counts_nowhere():
    given = rollout(torch.float32)
    dropped = torch.arange(TOKENS) % 2 == 0
    given["token_weight"][dropped] = 0.0
    spoilt = dict(given, advantage=given["advantage"].masked_fill(dropped, float("nan")))
    spoilt["behaviour"] = given["behaviour"].masked_fill(dropped, -1e4)
    for a, b in zip(gradients(**spoilt), gradients(**given), strict=True):
        assert torch.equal(a, b)
    leaves = a_case().leaves(torch.float32)
    ignored, _ = linear_policy_loss(leaves[0], leaves[1], a_case().target_T.masked_fill(dropped, -100), **given)
    weightless, _ = linear_policy_loss(leaves[0], leaves[1], a_case().target_T, **given)
    assert ignored.ratio == weightless.ratio and ignored.clipped == weightless.clipped


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"behaviour": torch.zeros(3)}, r"behaviour: expected shape \(90,\)"),
        ({"reference": torch.zeros(3)}, r"reference: expected shape \(90,\)"),
        ({"advantage": torch.zeros(90, requires_grad=True)}, "advantage: expected a tensor without requires_grad"),
        ({"clip_low": -0.1}, "clip_low: expected a finite number >= 0"),
        ({"kl_beta": float("inf")}, "kl_beta: expected a finite number >= 0"),
    ],
)
def test_wrong_arguments_are_named(changed, message):
    with pytest.raises(ValueError, match=message):
        linear_policy_loss(
            a_case().hidden_TH, a_case().weight_VH, a_case().target_T, **(rollout(torch.float32) | changed)
        )
