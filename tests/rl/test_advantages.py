"""How much better than usual a completion or a token of it was, against the papers' formulas."""

import torch

from synpro_engine.rl.advantages import (
    gae,
    group_advantages,
    overlong_penalty,
    per_reward_advantages,
    returns_to_go,
)


def test_a_group_of_equal_rewards_has_exactly_zero_advantage() -> None:
    # The mean of three times 0.1 is not 0.1 in floating point.
    equal = torch.full((1, 3), 0.1, dtype=torch.float64)
    assert float((equal - equal.mean()).abs().max()) > 0.0
    mixed = torch.cat([equal, torch.arange(3.0, dtype=torch.float64)[None]])
    for std in (True, False):
        assert group_advantages(mixed, scaled=std)[0].tolist() == [0.0] * 3
        parts = {"x": mixed, "y": mixed}
        assert per_reward_advantages(parts, {"x": 1.0, "y": 2.0}, scaled=std)[0].tolist() == [0.0] * 3


def test_group_advantages_have_mean_zero_and_unit_spread_whatever_the_scale_of_the_reward() -> None:
    rewards = torch.randn(3, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    scaled = group_advantages(torch.stack([100.0 * rewards[0] + 7, rewards[1], rewards[2]]))
    assert scaled.mean(-1).abs().max() < 1e-12
    assert (scaled.std(-1, correction=0) - 1).abs().max() < 1e-3
    plain = group_advantages(rewards, scaled=False)
    assert torch.allclose(plain, rewards - rewards.mean(-1, keepdim=True))


def test_normalising_per_reward_keeps_a_large_scale_from_ruling() -> None:
    large = torch.tensor([[0.0, 100.0, 0.0, 100.0]])
    small = torch.tensor([[0.0, 0.0, 1.0, 1.0]])
    summed = group_advantages(large + small)[0]
    assert summed[1] > 0 > summed[2], "summed first, the small reward does not count"
    separate = per_reward_advantages({"large": large, "small": small}, {"large": 1.0, "small": 1.0})[0]
    assert torch.allclose(separate[1], separate[2], atol=1e-3) and separate[3] > 0 > separate[0]
    assert abs(float(separate.square().mean()) - 1.0) < 1e-3


def test_each_of_a_group_is_compared_with_the_others_where_it_is_left_out() -> None:
    rewards = torch.tensor([[1.0, 2.0, 6.0], [0.3, 0.3, 0.3]], dtype=torch.float64)
    found = group_advantages(rewards, baseline="leave_one_out", scaled=False)
    assert torch.allclose(found[0], torch.tensor([1.0 - 4.0, 2.0 - 3.5, 6.0 - 1.5], dtype=torch.float64))
    assert found[1].tolist() == [0.0] * 3


def test_the_divisor_of_the_deviation_is_a_choice() -> None:
    rewards = torch.tensor([[0.0, 0.0, 0.0, 1.0]], dtype=torch.float64)
    for correction in (0, 1):
        deviation = rewards[0].std(correction=correction)
        found = group_advantages(rewards, correction=correction)
        assert torch.allclose(found[0], (rewards[0] - 0.25) / (deviation + 1e-4), rtol=1e-12)


def test_advantages_by_gae_are_the_sum_of_the_papers_formula() -> None:
    generator = torch.Generator().manual_seed(0)
    rewards, values = (torch.randn(2, 5, dtype=torch.float64, generator=generator) for _ in range(2))
    rewards[1, 3:] = values[1, 3:] = 0.0  # a row of three tokens
    gamma, decay = 0.9, 0.7
    found = gae(rewards, values, gamma=gamma, gae_lambda=decay)
    for row, length in ((0, 5), (1, 3)):
        after = [*values[row, 1:length].tolist(), 0.0]
        delta = [float(rewards[row, t]) + gamma * after[t] - float(values[row, t]) for t in range(length)]
        for t in range(length):
            expected = sum((gamma * decay) ** (k - t) * delta[k] for k in range(t, length))
            assert abs(float(found[row, t]) - expected) < 1e-12
    assert found[1, 3:].tolist() == [0.0, 0.0]


def test_gae_ends_at_the_return_less_the_value_and_at_one_step_ahead() -> None:
    generator = torch.Generator().manual_seed(1)
    rewards, values = (torch.randn(3, 6, dtype=torch.float64, generator=generator) for _ in range(2))
    assert torch.allclose(gae(rewards, values, gamma=1.0, gae_lambda=1.0), returns_to_go(rewards) - values)
    ahead = rewards + torch.nn.functional.pad(values[:, 1:], (0, 1)) - values
    assert torch.allclose(gae(rewards, values, gamma=1.0, gae_lambda=0.0), ahead)


def test_length_is_punished_over_its_last_part_alone() -> None:
    found = [overlong_penalty(length, 100, 0.2, 0.5) for length in (1, 80, 90, 100)]
    assert found[:2] == [0.0, 0.0] and abs(found[2] + 0.25) < 1e-12 and found[3] == -0.5
