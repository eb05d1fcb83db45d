"""linear_policy_loss equals the policy loss on log-probs of the definition, and costs what has a gradient."""

from typing import Any

import pytest
import torch
from torch import Tensor

from synpro_kernels import PolicyObjective, PolicyTokens, linear_logprob_definition, linear_policy_loss, policy_loss
from synpro_kernels.ops.linear_logprob import block_sizes
from synpro_kernels.ops.linear_logprob.cached_logits import CachedLogits
from synpro_kernels.testing import assert_as_accurate
from synpro_kernels.testing.layers import Case, make_case, plain

TOKENS, VOCAB = 90, 601


def a_case() -> Case:
    return make_case(TOKENS, VOCAB, torch.float32, "some ignored")


def objective_of(kl_beta: float = 0.0, **changed: Any) -> PolicyObjective:
    return PolicyObjective(**({"clip_high": 0.28, "kl_beta": kl_beta} | changed))


def rollout(dtype: torch.dtype) -> dict[str, Tensor]:
    torch.manual_seed(1)
    logprob = linear_logprob_definition(
        a_case().hidden_TH.double(), a_case().weight_VH.double(), a_case().target_T
    ).logprob
    return {
        "behaviour": (logprob + 0.4 * torch.randn(TOKENS)).to(dtype),
        "reference": (logprob + 0.4 * torch.randn(TOKENS)).to(dtype),
        "advantage": torch.randn(TOKENS).to(dtype),
        "sequence_gap": 0.3 * torch.randn(TOKENS).to(dtype),
        "correction": torch.rand(TOKENS).to(dtype),
        "weight": torch.rand(TOKENS).to(dtype),
    }


REPORTED = (
    "surrogate", "kl", "divergence", "entropy", "clipped", "ratio", "ratio_square", "ratio_counts", "gap", "tokens",
)  # fmt: skip


def by_definition(hidden: Tensor, weight: Tensor, target: Tensor, _bias: None):
    return linear_logprob_definition(hidden, weight, target, entropy=True)


def usual(hidden: Tensor, weight: Tensor, target: Tensor, bias: None):
    """What plain PyTorch says, in the inputs' precision, with its entropy."""
    scored, logprobs = plain(hidden, weight, target, bias), torch.log_softmax(hidden @ weight.t(), -1)
    return scored._replace(entropy=-(logprobs.exp() * logprobs).sum(-1))


def expected(score, leaves: list[Tensor], dtype: torch.dtype, objective: PolicyObjective) -> list[Tensor]:
    keep = a_case().target_T != -100
    scored = score(leaves[0], leaves[1], a_case().target_T, None)
    tokens = PolicyTokens(**{name: values[keep] for name, values in rollout(dtype).items()})
    terms = policy_loss(scored.logprob[keep], scored.entropy[keep], tokens, objective)
    return [terms.objective, *torch.autograd.grad(terms.objective, leaves), *(getattr(terms, n) for n in REPORTED)]


def found(leaves: list[Tensor], objective: PolicyObjective) -> list[Tensor]:
    tokens = PolicyTokens(**rollout(torch.float32))
    terms = linear_policy_loss(leaves[0], leaves[1], a_case().target_T, tokens=tokens, objective=objective)
    assert terms.entropy > 0 and not terms.entropy.requires_grad
    return [terms.objective, *torch.autograd.grad(terms.objective, leaves), *(getattr(terms, n) for n in REPORTED)]


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"kl_beta": 0.1},
        {"kl_beta": 0.1, "kl": "k2", "dual_clip": 1.5},
        {"surrogate": "cispo", "entropy_bonus": 0.03},
        {"surrogate": "gspo"},
        {"surrogate": "reinforce", "kl_beta": 0.05, "entropy_bonus": 0.01},
    ],
    ids=str,
)
def test_loss_and_gradients_are_as_accurate_as_plain_pytorch(backend, settings):
    objective = objective_of(**settings)
    truth = expected(by_definition, a_case().leaves(torch.float64), torch.float64, objective)
    others = expected(usual, a_case().leaves(torch.float32), torch.float32, objective)
    mine = found(a_case().leaves(torch.float32), objective)
    for name, a, p, t in zip(("objective", "hidden", "weight", *REPORTED), mine, others, truth, strict=True):
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

    def add_gradients(self, coefficients_C5, into, shares=None, *, sparse, first):
        assert sparse
        live.append(int((coefficients_C5[:, 2:] != 0).any(1).sum()))
        original(self, coefficients_C5, into, shares, sparse=sparse, first=first)

    monkeypatch.setattr(CachedLogits, "add_gradients", add_gradients)
    leaves = a_case().leaves(torch.float32)
    terms = linear_policy_loss(
        leaves[0], leaves[1], a_case().target_T, tokens=PolicyTokens(**given), objective=PolicyObjective()
    )
    assert sum(live) == wanted and 0 < wanted < int(labelled.sum())
    grad = torch.autograd.grad(terms.objective, leaves[0])[0]
    assert (grad[~labelled | held | (given["advantage"] == 0)] == 0).all()


@pytest.mark.parametrize("silent", ["no token", "the first chunk", "all tokens"])
def test_what_no_token_of_the_first_chunk_writes_is_zero(silent, backend, monkeypatch):
    """The first chunk writes the weight's gradient into new memory, which is NaN here."""
    advantage = rollout(torch.float32)["advantage"]
    advantage[: {"no token": 0, "the first chunk": TOKENS // 2, "all tokens": TOKENS}[silent]] = 0.0
    at_once = gradients(0.0, advantage=advantage)
    monkeypatch.setattr(block_sizes, "cached", lambda shard, vocab: (16, 64))
    for found, expected in zip(gradients(0.0, advantage=advantage), at_once, strict=True):
        torch.testing.assert_close(found, expected)


def gradients(kl_beta: float = 0.1, **changed: Tensor) -> list[Tensor]:
    leaves = a_case().leaves(torch.float32)
    tokens = PolicyTokens(**(rollout(torch.float32) | changed))
    terms = linear_policy_loss(leaves[0], leaves[1], a_case().target_T, tokens=tokens, objective=objective_of(kl_beta))
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
    given["weight"][dropped] = 0.0
    spoilt = dict(given, advantage=given["advantage"].masked_fill(dropped, float("nan")))
    spoilt["behaviour"] = given["behaviour"].masked_fill(dropped, -1e4)
    for a, b in zip(gradients(**spoilt), gradients(**given), strict=True):
        assert torch.equal(a, b)
    leaves = a_case().leaves(torch.float32)
    ignored, weightless = (
        linear_policy_loss(leaves[0], leaves[1], target, tokens=PolicyTokens(**given), objective=objective_of())
        for target in (a_case().target_T.masked_fill(dropped, -100), a_case().target_T)
    )
    assert ignored.ratio == weightless.ratio and ignored.clipped == weightless.clipped
    assert ignored.tokens == weightless.tokens == int(((a_case().target_T != -100) & ~dropped).sum())


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"behaviour": torch.zeros(3)}, r"behaviour: expected shape \(90,\)"),
        ({"reference": torch.zeros(3)}, r"reference: expected shape \(90,\)"),
        ({"advantage": torch.zeros(90, requires_grad=True)}, "advantage: expected a tensor without requires_grad"),
    ],
)
def test_wrong_arguments_are_named(changed, message):
    tokens = PolicyTokens(**(rollout(torch.float32) | changed))
    with pytest.raises(ValueError, match=message):
        linear_policy_loss(
            a_case().hidden_TH, a_case().weight_VH, a_case().target_T, tokens=tokens, objective=objective_of()
        )


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"clip_low": -0.1}, "clip_low: expected a finite number >= 0"),
        ({"kl_beta": float("inf")}, "kl_beta: expected a finite number >= 0"),
        ({"dual_clip": 1.0}, "dual_clip: expected a finite number > 1"),
    ],
)
def test_wrong_settings_are_named(changed, message):
    with pytest.raises(ValueError, match=message):
        PolicyObjective(**changed)
