"""From the rewards of a step's completions to the advantage of each token.

Within groups advantages belong to whole completions; with `batch` and `critic` each token has its own, which takes the
reference's and the critic's numbers. What is compared is the whole job's. Functions are collective where they say so.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from synpro_engine.dist import Axis, Topology, broadcast_in, gather_objects
from synpro_engine.rl.advantages import STD_EPSILON, gae, group_advantages, per_reward_advantages, returns_to_go
from synpro_engine.rl.config import TuneConfig
from synpro_engine.rl.types import Rollout, RolloutBatch
from synpro_kernels import DIVERGENCES


def with_advantages(
    rollouts: Sequence[Rollout],
    batches: Sequence[RolloutBatch],
    config: TuneConfig,
    weights: Mapping[str, float],
    topology: Topology,
) -> tuple[list[Rollout], list[RolloutBatch]]:
    """This rank's rollouts and batches with their advantages. Collective over the job.

    rollouts: groups one behind the other, members in order; batches: all of them, with what the reference policy and
    the critic say where `config` asks for it.
    """
    divergence = _divergence(batches, config) if config.kl_in == "reward" and config.kl_beta > 0.0 else None
    if config.baseline in ("group", "leave_one_out"):
        whole = _within_groups(rollouts, divergence, config, weights, topology.dp)
        found = [torch.full((len(r.completion.token_ids),), a) for r, a in zip(rollouts, whole, strict=True)]
        returns = None
    else:
        found, returns = _by_token(rollouts, batches, divergence, config, topology.dp)
    # The first rank's for its tensor-parallel group: all of it must learn from the very same numbers.
    found, returns = broadcast_in(topology.tp, (found, returns))

    def joined(batch: RolloutBatch, values: Sequence[Tensor]) -> Tensor:
        return torch.cat([values[at] for at in batch.places]).float().to(batch.behaviour_N.device)

    return (
        [replace(r, advantage=float(values.double().mean())) for r, values in zip(rollouts, found, strict=True)],
        [
            replace(
                batch,
                advantage_N=joined(batch, found),
                return_N=None if returns is None else joined(batch, returns),
            )
            for batch in batches
        ],
    )


def _by_place(batches: Sequence[RolloutBatch], rows: Sequence[Sequence[Tensor]]) -> list[Tensor]:
    """Rows of batches, fp64 on the CPU, in the order of the rollouts."""
    found: dict[int, Tensor] = {}
    for batch, its in zip(batches, rows, strict=True):
        found.update(zip(batch.places, its, strict=True))
    return [found[at].double().cpu() for at in sorted(found)]


def _divergence(batches: Sequence[RolloutBatch], config: TuneConfig) -> list[Tensor]:
    """Of each completion: beta times the estimated KL of each token, under the policy as it sampled."""
    rows = []
    for batch in batches:
        assert batch.reference_N is not None, "a KL term needs a reference policy"
        estimate_N = DIVERGENCES[config.kl](batch.behaviour_N, batch.reference_N)
        rows.append(batch.by_completion(config.kl_beta * estimate_N))
    return _by_place(batches, rows)


def _within_groups(
    rollouts: Sequence[Rollout],
    divergence: Sequence[Tensor] | None,
    config: TuneConfig,
    weights: Mapping[str, float],
    axis: Axis,
) -> list[float]:
    """Of this rank's completions. Groups with a fault take no part, and have 0. Collective over `axis`."""
    off = [0.0] * len(rollouts) if divergence is None else [float(row.sum()) for row in divergence]
    mine = [(r.reward - kl, r.parts, r.dropped) for r, kl in zip(rollouts, off, strict=True)]
    gathered = gather_objects(axis, mine)
    everything = [row for part in gathered for row in part]

    def grouped(values: Sequence[float]) -> Tensor:
        return torch.tensor(values, dtype=torch.float64).view(-1, config.group_size)

    reward_PG = grouped([reward for reward, _, _ in everything])
    # From the gathered rewards, hence alike on all ranks without a word between them.
    sound_P = reward_PG.isfinite().all(-1) & ~grouped([float(dropped) for _, _, dropped in everything]).bool().any(-1)
    advantage_PG, correction = torch.zeros_like(reward_PG), int(config.std_divisor == "n-1")
    if not bool(sound_P.any()):
        pass
    elif config.normalisation == "per_reward":
        parts = {
            name: grouped([part[name] for _, part, _ in everything])[sound_P]
            for name in everything[0][1]
            if weights.get(name, 0.0) != 0.0
        }
        advantage_PG[sound_P] = per_reward_advantages(
            parts, weights, scaled=config.scale != "none", correction=correction
        )
    else:
        baseline = "leave_one_out" if config.baseline == "leave_one_out" else "group"
        advantage_PG[sound_P] = group_advantages(
            reward_PG[sound_P], baseline=baseline, scaled=config.scale == "group", correction=correction
        )
        if config.scale == "batch":
            advantage_PG[sound_P] /= advantage_PG[sound_P].std(correction=correction) + STD_EPSILON
    begin = sum(map(len, gathered[: axis.rank]))
    return advantage_PG.flatten()[begin : begin + len(rollouts)].tolist()


def _by_token(
    rollouts: Sequence[Rollout],
    batches: Sequence[RolloutBatch],
    divergence: Sequence[Tensor] | None,
    config: TuneConfig,
    axis: Axis,
) -> tuple[list[Tensor], list[Tensor] | None]:
    """Advantages of each completion's tokens, and with a critic what its values should have been."""
    lengths = [len(rollout.completion.token_ids) for rollout in rollouts]
    rewards = [torch.zeros(length, dtype=torch.float64) for length in lengths]
    for at, rollout in enumerate(rollouts):
        if not rollout.dropped:  # its reward is no number
            if divergence is not None:
                rewards[at] -= divergence[at]
            rewards[at][-1] += rollout.reward  # known when the last token is
    reward_RT = pad_sequence(rewards, batch_first=True)
    returns = None
    if config.critic is None:
        found = returns_to_go(reward_RT)
    else:
        value_RT = pad_sequence(
            _by_place(batches, [b.by_completion(_known(b.value_N)) for b in batches]), batch_first=True
        )
        found = gae(reward_RT, value_RT, gamma=config.critic.gamma, gae_lambda=config.critic.gae_lambda)
        returns = [row[:length] for row, length in zip(found + value_RT, lengths, strict=True)]
    advantages = [row[:length] for row, length in zip(found, lengths, strict=True)]
    # A critic never learns what masked completions earn: what is left of it there says nothing of the others.
    counted = [
        row
        for row, rollout in zip(advantages, rollouts, strict=True)
        if (not rollout.dropped if config.critic is None else rollout.teaches)
    ]
    mean, std = _mean_and_std(counted, axis, int(config.std_divisor == "n-1"))
    if config.scale == "none":
        # A critic foretold the mean already.
        mean, std = 0.0 if config.critic is not None else mean, 1.0 - STD_EPSILON
    return [(row - mean) / (std + STD_EPSILON) for row in advantages], returns


def _known(values_N: Tensor | None) -> Tensor:
    assert values_N is not None, "the critic is asked before advantages are known"
    return values_N


def _mean_and_std(rows: Sequence[Tensor], axis: Axis, correction: int) -> tuple[float, float]:
    """Over all tokens of the job; a single one deviates by 0 whatever the correction. Collective over `axis`."""

    def over_job(value: float) -> float:
        return math.fsum(gather_objects(axis, value))

    count = over_job(float(sum(map(len, rows))))
    if not count:
        return 0.0, 0.0
    mean = over_job(math.fsum(float(row.sum()) for row in rows)) / count
    square = over_job(math.fsum(float((row - mean).square().sum()) for row in rows))
    return mean, math.sqrt(square / max(1.0, count - correction))
