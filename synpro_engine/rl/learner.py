"""A step's learning: from scored completions to the optimizer steps of policy and critic."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch

from synpro_engine.dist import sum_over
from synpro_engine.model.model import Model
from synpro_engine.rl.batches import micro_batches
from synpro_engine.rl.config import TuneConfig
from synpro_engine.rl.credit import with_advantages
from synpro_engine.rl.critic import Critic
from synpro_engine.rl.policy import PolicyLoss, corrected, rollout_logprobs
from synpro_engine.rl.record import Update
from synpro_engine.rl.types import Rollout, RolloutBatch
from synpro_engine.train.engine import Engine, LossFn, StepResult


class Learnt(NamedTuple):
    """The rollouts with their advantages, and the optimizer steps on them: the policy's and the critic's."""

    rollouts: list[Rollout]
    updates: list[Update]
    taught: list[StepResult]


class Learner:
    """Policy, reference and critic of one run. Its methods are collective over the job."""

    def __init__(
        self, config: TuneConfig, engine: Engine, reference_policy: Model | None, critic: Critic | None,
        vocab_limit: int, weights: Mapping[str, float],
    ) -> None:  # fmt: skip
        """weights: of rewards by name, for those that are compared one by one."""
        self._config, self._engine, self._reference_policy, self._critic = config, engine, reference_policy, critic
        self._vocab_limit, self._weights, self._topology = vocab_limit, weights, engine.model.topology
        self._loss = PolicyLoss(config, vocab_limit)

    def learn(self, rollouts: list[Rollout], step: int) -> Learnt:
        """All optimizer steps on one rollout batch of this rank, of which `step` were before."""
        config, count = self._config, self._config.minibatches
        # Members of a group are dealt out to different minibatches, which so have about the same prompts; by their
        # places among all the job's, so that a minibatch does not depend on the layout.
        begin = self._topology.dp.rank * len(rollouts)
        dealt = [range((part - begin) % count, len(rollouts), count) for part in range(count)]
        parts = [micro_batches(rollouts, config, self._topology.device, places) for places in dealt]
        flat = [self._informed(batch) for part in parts for batch in part]
        rollouts, flat = with_advantages(rollouts, flat, config, self._weights, self._topology)
        behind = iter(flat)
        parts = [[next(behind) for _ in part] for part in parts]
        denominators = [self._denominator([rollouts[at] for at in places]) for places in dealt]
        learnt = Learnt(rollouts, [], [])
        for part, denominator in list(zip(parts, denominators, strict=True)) * config.updates_per_rollout:
            if self._critic is not None:
                learnt.taught.append(_step(self._critic.engine, part, self._critic.loss, denominator))
            if config.critic is None or step >= config.critic.warmup_steps:
                learnt.updates.append(Update(_step(self._engine, part, self._loss, denominator), denominator))
        return learnt

    def _informed(self, batch: RolloutBatch) -> RolloutBatch:
        """The batch with what the reference policy, the critic and, where it is asked, the policy say of its tokens."""
        # Once a rollout: neither its tokens nor these policies change from update to update.
        config, limit = self._config, self._vocab_limit
        if self._reference_policy is not None:
            batch = replace(batch, reference_N=rollout_logprobs(batch, self._reference_policy, config, limit))
        if config.importance is not None:
            batch = corrected(batch, rollout_logprobs(batch, self._engine.model, config, limit), config.importance)
        return batch if self._critic is None else self._critic.informed(batch)

    def _denominator(self, rollouts: Sequence[Rollout]) -> float:
        """What sums over an update's tokens are divided by: of the whole job, for ranks hold different numbers."""
        aggregation, longest = self._config.aggregation, self._config.sampling.max_new_tokens
        each = [
            len(r.completion.token_ids) if aggregation == "token" else longest if aggregation == "constant" else 1
            for r in rollouts
            if r.teaches
        ]
        count_here = torch.tensor(sum(each), dtype=torch.float64, device=self._topology.device)
        return max(1.0, float(sum_over(self._topology.dp, count_here)))  # 1: nothing teaches


def _step(engine: Engine, part: Sequence[RolloutBatch], loss: LossFn[RolloutBatch], denominator: float) -> StepResult:
    return engine.step(part, loss, denominator=denominator, rows_of=lambda batch: batch.rows)
