"""Advantages within groups, and losses over tokens."""

import torch

from synpro_engine.rl.advantages import group_advantages, per_reward_advantages
from synpro_kernels import grpo_loss, k3


def test_a_group_of_equal_rewards_has_exactly_zero_advantage() -> None:
    # The mean of three times 0.1 is not 0.1 in floating point.
    equal = torch.full((1, 3), 0.1, dtype=torch.float64)
    assert float((equal - equal.mean()).abs().max()) > 0.0
    mixed = torch.cat([equal, torch.arange(3.0, dtype=torch.float64)[None]])
    for std in (True, False):
        assert group_advantages(mixed, std_normalisation=std)[0].tolist() == [0.0] * 3
        parts = {"x": mixed, "y": mixed}
        assert per_reward_advantages(parts, {"x": 1.0, "y": 2.0}, std_normalisation=std)[0].tolist() == [0.0] * 3


def test_group_advantages_have_mean_zero_and_unit_spread_whatever_the_scale_of_the_reward() -> None:
    rewards = torch.randn(3, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    scaled = group_advantages(torch.stack([100.0 * rewards[0] + 7, rewards[1], rewards[2]]))
    assert scaled.mean(-1).abs().max() < 1e-12
    assert (scaled.std(-1, correction=0) - 1).abs().max() < 1e-3
    plain = group_advantages(rewards, std_normalisation=False)
    assert torch.allclose(plain, rewards - rewards.mean(-1, keepdim=True))


def test_normalising_per_reward_keeps_a_large_scale_from_ruling() -> None:
    large = torch.tensor([[0.0, 100.0, 0.0, 100.0]])
    small = torch.tensor([[0.0, 0.0, 1.0, 1.0]])
    summed = group_advantages(large + small)[0]
    assert summed[1] > 0 > summed[2], "summed first, the small reward does not count"
    separate = per_reward_advantages({"large": large, "small": small}, {"large": 1.0, "small": 1.0})[0]
    assert torch.allclose(separate[1], separate[2], atol=1e-3) and separate[3] > 0 > separate[0]
    assert abs(float(separate.square().mean()) - 1.0) < 1e-3


def loss_of(logprob: torch.Tensor, behaviour: torch.Tensor, advantage: torch.Tensor, **settings: float) -> torch.Tensor:
    options = {"clip_low": 0.2, "clip_high": 0.2, "kl_beta": 0.0} | settings
    return grpo_loss(
        logprob, behaviour_N=behaviour, advantage_N=advantage, weight_N=torch.ones_like(logprob), reference_N=None,
        **options,
    ).objective  # fmt: skip


def test_at_the_sampled_policy_the_gradient_is_the_plain_policy_gradient() -> None:
    logprob = torch.tensor([-0.3, -2.0, -5.0], requires_grad=True)
    advantage = torch.tensor([1.5, -0.7, 0.0])
    (gradient,) = torch.autograd.grad(loss_of(logprob, logprob.detach(), advantage), logprob)
    assert torch.equal(gradient, -advantage)


def test_the_clip_stops_only_what_has_gone_far_enough() -> None:
    """Up with a good token or down with a bad one beyond the clip: no gradient. Back towards it: full gradient."""
    log_ratio = torch.tensor([0.5, -0.5, 0.5, -0.5, 0.1, -0.1])
    advantage = torch.tensor([1.0, -1.0, -1.0, 1.0, 1.0, -1.0])
    logprob = log_ratio.clone().requires_grad_()
    terms = grpo_loss(
        logprob, behaviour_N=torch.zeros(6), advantage_N=advantage, weight_N=torch.ones(6), reference_N=None,
        clip_low=0.2, clip_high=0.3, kl_beta=0.0,
    )  # fmt: skip
    (gradient,) = torch.autograd.grad(terms.objective, logprob)
    expected = -advantage * log_ratio.exp()
    expected[:2] = 0.0
    assert torch.allclose(gradient, expected)
    assert terms.clipped.item() == 2


def test_kl_of_a_policy_with_itself_is_zero_with_zero_gradient_and_else_positive() -> None:
    logprob = torch.tensor([-0.1, -3.0, -9.0], requires_grad=True)
    same = k3(logprob, logprob.detach())
    (gradient,) = torch.autograd.grad(same.sum(), logprob)
    assert same.tolist() == [0.0] * 3 and gradient.tolist() == [0.0] * 3
    assert (k3(logprob, logprob.detach() + torch.tensor([0.2, -0.2, 1e-2])) > 0).all()


def test_k3_averages_to_the_kl_divergence() -> None:
    policy, reference = (
        torch.log_softmax(torch.randn(6, dtype=torch.float64, generator=torch.Generator().manual_seed(s)), -1)
        for s in (1, 2)
    )
    exact = (policy.exp() * (policy - reference)).sum()
    assert torch.allclose((policy.exp() * k3(policy, reference)).sum(), exact)
