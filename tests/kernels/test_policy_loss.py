"""What policy optimisation minimises, from log-probabilities: each method against its paper's formula."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from synpro_kernels import (
    DIVERGENCES,
    RATIO_EDGES,
    SURROGATES,
    PolicyObjective,
    PolicyTokens,
    SurrogateTerms,
    policy_loss,
    ratio_quantile,
)


def loss_of(logprob: Tensor, advantage: Tensor, *, entropy: Tensor | None = None, **given: Any) -> SurrogateTerms:
    tensors = {name: values for name, values in given.items() if isinstance(values, Tensor)}
    settings = {name: value for name, value in given.items() if name not in tensors}
    tokens = {"behaviour": torch.zeros_like(advantage), "weight": torch.ones_like(advantage)} | tensors
    entropy = torch.zeros_like(advantage) if entropy is None else entropy
    return policy_loss(logprob, entropy, PolicyTokens(advantage=advantage, **tokens), PolicyObjective(**settings))


def gradient_of(logprob: Tensor, advantage: Tensor, **given: Any) -> Tensor:
    return torch.autograd.grad(loss_of(logprob, advantage, **given).objective, logprob)[0]


def drawn(count: int = 64, spread: float = 0.5) -> tuple[Tensor, Tensor]:
    """Log ratios as leaves, and advantages, in fp64."""
    generator = torch.Generator().manual_seed(0)
    log_ratio = (spread * torch.randn(count, dtype=torch.float64, generator=generator)).requires_grad_()
    return log_ratio, torch.randn(count, dtype=torch.float64, generator=generator)


@pytest.mark.parametrize("surrogate", sorted(SURROGATES))
def test_at_the_sampled_policy_the_gradient_is_the_plain_policy_gradient(surrogate: str) -> None:
    logprob = torch.tensor([-0.3, -2.0, -5.0], requires_grad=True)
    advantage, own = torch.tensor([1.5, -0.7, 0.0]), {"sequence_gap": torch.zeros(3)}
    gradient = gradient_of(logprob, advantage, surrogate=surrogate, behaviour=logprob.detach(), **own)
    assert torch.equal(gradient, -advantage)


def test_the_clip_stops_only_what_has_gone_far_enough() -> None:
    """Up with a good token or down with a bad one beyond the clip: no gradient. Back towards it: full gradient."""
    log_ratio = torch.tensor([0.5, -0.5, 0.5, -0.5, 0.1, -0.1])
    advantage = torch.tensor([1.0, -1.0, -1.0, 1.0, 1.0, -1.0])
    logprob = log_ratio.clone().requires_grad_()
    gradient = gradient_of(logprob, advantage, clip_high=0.3)
    expected = -advantage * log_ratio.exp()
    expected[:2] = 0.0
    assert torch.allclose(gradient, expected)
    assert loss_of(logprob, advantage, clip_high=0.3).clipped.item() == 2


@pytest.mark.parametrize("spread", [1e-4, 0.02, 0.5, 3.0])
def test_quantiles_of_ratios_are_read_from_counts_that_add_up_over_parts(spread: float) -> None:
    log_ratio, advantage = drawn(5000, spread)
    parts = zip(log_ratio.detach().split(1700), advantage.split(1700), strict=True)
    counts = sum(loss_of(*part).ratio_counts for part in parts)
    assert isinstance(counts, Tensor) and torch.equal(counts, loss_of(log_ratio.detach(), advantage).ratio_counts)
    assert counts.sum() == 5000 and len(counts) == len(RATIO_EDGES) + 1
    for share in (0.01, 0.25, 0.5, 0.99):
        exact = float(log_ratio.detach().quantile(share).clamp(RATIO_EDGES[0], RATIO_EDGES[-1]))
        assert math.log(ratio_quantile(counts.tolist(), share)) == pytest.approx(exact, rel=0.2, abs=1e-3)


def test_ratios_beyond_all_bins_and_of_none_have_quantiles_too() -> None:
    far = loss_of(torch.tensor([-200.0, 200.0, 200.0]), torch.ones(3)).ratio_counts.tolist()
    assert ratio_quantile(far, 0.01) == math.exp(RATIO_EDGES[0])
    assert ratio_quantile(far, 0.99) == math.exp(RATIO_EDGES[-1])
    assert math.isnan(ratio_quantile([0.0] * (len(RATIO_EDGES) + 1), 0.5))


def test_the_clip_is_the_formula_of_ppo() -> None:
    log_ratio, advantage = drawn()
    ratio = log_ratio.detach().exp()
    terms = loss_of(log_ratio, advantage, clip_low=0.2, clip_high=0.28)
    expected = torch.minimum(ratio * advantage, ratio.clamp(0.8, 1.28) * advantage)
    assert math.isclose(float(terms.surrogate), float(expected.sum()), rel_tol=1e-12)
    assert float(terms.objective) == -float(terms.surrogate)


def test_the_second_clip_bounds_what_a_bad_token_costs() -> None:
    log_ratio, advantage = drawn(spread=2.0)
    ratio = log_ratio.detach().exp()
    terms = loss_of(log_ratio, advantage, dual_clip=3.0)
    once = torch.minimum(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage)
    twice = torch.where(advantage < 0, torch.maximum(once, 3.0 * advantage), once)
    assert math.isclose(float(terms.surrogate), float(twice.sum()), rel_tol=1e-12)
    assert float(terms.surrogate) > float(once.sum()), "some token must reach the second clip"
    beyond = (advantage < 0) & (ratio > 3.0)
    assert beyond.any() and not gradient_of(log_ratio, advantage, dual_clip=3.0)[beyond].any()


def test_sequences_are_compared_whole_by_gspo() -> None:
    """The sum over tokens, by tokens' weights 1 / length, has value and gradient of eq. 5 with s = geometric mean."""
    lengths, low, high = [3, 5, 1, 7], 0.05, 0.08
    log_ratio, _ = drawn(sum(lengths), 0.1)
    advantage = torch.tensor([1.0, -0.5, 0.7, -1.2], dtype=torch.float64)
    rows = log_ratio.split(lengths)
    s = torch.stack([row.mean().exp() for row in rows])
    eq5 = -torch.minimum(s * advantage, s.clamp(1 - low, 1 + high) * advantage).sum()

    def by_token(values: Tensor) -> Tensor:
        return torch.repeat_interleave(values, torch.tensor(lengths))

    given = {
        "sequence_gap": by_token(torch.stack([row.mean() for row in rows]).detach()),
        "weight": by_token(1.0 / torch.tensor(lengths, dtype=torch.float64)),
        "surrogate": "gspo", "clip_low": low, "clip_high": high,
    }  # fmt: skip
    terms = loss_of(log_ratio, by_token(advantage), **given)
    assert math.isclose(float(terms.objective), float(eq5), rel_tol=1e-12)
    expected = torch.autograd.grad(eq5, log_ratio)[0]
    assert torch.allclose(gradient_of(log_ratio, by_token(advantage), **given), expected, rtol=1e-12)
    assert 0 < float(terms.clipped) < sum(lengths) and not expected.all()


def test_no_token_loses_its_gradient_by_cispo() -> None:
    log_ratio, advantage = drawn(spread=2.0)
    gradient = gradient_of(log_ratio, advantage, surrogate="cispo", clip_low=1.0, clip_high=1.5)
    assert torch.allclose(gradient, -log_ratio.detach().exp().clamp(0.0, 2.5) * advantage, rtol=1e-12)
    terms = loss_of(log_ratio, advantage, surrogate="cispo", clip_low=1.0, clip_high=1.5)
    assert float(terms.clipped) == float((log_ratio.exp() > 2.5).sum()) > 0


@pytest.mark.parametrize("kl", sorted(DIVERGENCES))
def test_kl_of_a_policy_with_itself_is_zero_and_its_gradient_zero_where_it_may_stand_in_a_loss(kl: str) -> None:
    logprob = torch.tensor([-0.1, -3.0, -9.0], requires_grad=True)
    same = DIVERGENCES[kl](logprob, logprob.detach())
    (gradient,) = torch.autograd.grad(same.sum(), logprob)
    assert same.tolist() == [0.0] * 3
    assert gradient.tolist() == [1.0 if kl == "k1" else 0.0] * 3
    apart = DIVERGENCES[kl](logprob, logprob.detach() + torch.tensor([0.2, -0.2, 1e-2]))
    assert bool((apart > 0).all()) == (kl != "k1")


def two_policies() -> tuple[Tensor, Tensor]:
    policy, reference = (
        torch.randn(6, dtype=torch.float64, generator=torch.Generator().manual_seed(s)) for s in (1, 2)
    )
    return policy.requires_grad_(), torch.log_softmax(reference, -1)


@pytest.mark.parametrize("kl", ["k1", "k3"])
def test_estimates_average_to_the_kl_divergence(kl: str) -> None:
    policy, reference = two_policies()
    policy = torch.log_softmax(policy.detach(), -1)
    exact = (policy.exp() * (policy - reference)).sum()
    assert torch.allclose((policy.exp() * DIVERGENCES[kl](policy, reference)).sum(), exact)


@pytest.mark.parametrize(("kl", "of"), [("k1", "nothing"), ("k2", "the divergence"), ("k3", "its reverse")])
def test_gradients_of_estimates_average_to_what_the_docstrings_say(kl: str, of: str) -> None:
    logits, reference = two_policies()
    policy = torch.log_softmax(logits, -1)
    # Tokens come with the policy's own probability, through which no gradient flows: they were drawn.
    found = torch.autograd.grad(
        (policy.detach().exp() * DIVERGENCES[kl](policy, reference)).sum(), logits, retain_graph=True
    )[0]
    divergence = (policy.exp() * (policy - reference)).sum()
    reverse = (reference.exp() * (reference - policy)).sum()
    exact = {"nothing": 0.0 * divergence, "the divergence": divergence, "its reverse": reverse}[of]
    assert torch.allclose(found, torch.autograd.grad(exact, logits)[0], atol=1e-12)


def test_divergence_bonus_and_correction_are_added_by_weight() -> None:
    log_ratio, advantage = drawn()
    generator = torch.Generator().manual_seed(3)
    weight, correction, entropy, reference = (
        torch.rand(64, dtype=torch.float64, generator=generator) for _ in range(4)
    )
    entropy.requires_grad_()
    terms = loss_of(
        log_ratio, advantage, weight=weight, correction=correction, reference=reference, entropy=entropy,
        kl="k2", kl_beta=0.3, entropy_bonus=0.05,
    )  # fmt: skip
    ratio = log_ratio.exp()
    gain = torch.minimum(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage) * correction
    kl, bonus = 0.5 * (log_ratio - reference).square(), entropy
    expected = (weight * (0.3 * kl - gain - 0.05 * bonus)).sum()
    assert math.isclose(float(terms.objective), float(expected), rel_tol=1e-12)
    assert math.isclose(float(terms.kl), float((weight * kl).sum()), rel_tol=1e-12)
    assert math.isclose(float(terms.divergence), float(kl.sum()), rel_tol=1e-12)
    found = torch.autograd.grad(terms.objective, [log_ratio, entropy])
    for mine, theirs in zip(found, torch.autograd.grad(expected, [log_ratio, entropy]), strict=True):
        assert torch.allclose(mine, theirs, rtol=1e-12)


def test_a_token_of_weight_zero_may_hold_anything() -> None:
    log_ratio, advantage = drawn(8)
    weight = torch.ones(8, dtype=torch.float64)
    weight[2] = 0.0
    spoilt = advantage.clone()
    spoilt[2] = math.nan
    terms, clean = (loss_of(log_ratio, values, weight=weight) for values in (spoilt, advantage))
    assert all(torch.equal(value, vars(clean)[name]) for name, value in vars(terms).items())
    assert float(terms.tokens) == 7.0
