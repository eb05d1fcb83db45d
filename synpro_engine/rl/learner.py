"""A step's learning: from scored completions to the optimizer steps of policy and critic."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from synpro_engine.backend.spans import REFERENCE, TRAIN, span
from synpro_engine.dist import sum_over
from synpro_engine.model.model import Model
from synpro_engine.model.trunk import frozen_blocks, keeping_trunk, shares_blocks
from synpro_engine.rl.batches import micro_batches
from synpro_engine.rl.config import TuneConfig
from synpro_engine.rl.credit import with_advantages
from synpro_engine.rl.critic import Critic
from synpro_engine.rl.policy import PolicyLoss, corrected, rollout_logprobs
from synpro_engine.rl.types import Rollout, RolloutBatch
from synpro_engine.train.engine import Engine, LossFn, StepResult, TrunkOf
from synpro_engine.train.parking import Needs, stay


class Learnt(NamedTuple):
    """The rollouts with their advantages, and the optimizer steps on them: the policy's and the critic's."""

    rollouts: list[Rollout]
    updates: list[StepResult]
    taught: list[StepResult]


class Learner:
    """Policy, reference and critic of one run. Its methods are collective over the job."""

    def __init__(
        self, config: TuneConfig, engine: Engine, reference_policy: Model | None, critic: Critic | None,
        vocab_limit: int, weights: Mapping[str, float], needs: Needs = stay,
    ) -> None:  # fmt: skip
        """weights: of rewards by name, for those that are compared one by one. needs: told of the phases of `learn`."""
        self._needs = needs
        self._config, self._engine, self._reference_policy, self._critic = config, engine, reference_policy, critic
        self._vocab_limit, self._weights, self._topology = vocab_limit, weights, engine.model.topology
        self._loss = PolicyLoss(config, vocab_limit)
        chunk = engine.model.chunks[0]
        self._frozen = frozen_blocks(chunk)
        # A reference of other weights would hand the policy a trunk that is not its own.
        self._shared = reference_policy is not None and shares_blocks(reference_policy.chunks[0], chunk, self._frozen)

    def learn(self, rollouts: list[Rollout], step: int) -> Learnt:
        """All optimizer steps on one rollout batch of this rank, of which `step` were before."""
        config, count = self._config, self._config.minibatches
        # Members of a group are dealt out to different minibatches, which so have about the same prompts; by their
        # places among all the job's, so that a minibatch does not depend on the layout.
        begin = self._topology.dp.rank * len(rollouts)
        dealt = [range((part - begin) % count, len(rollouts), count) for part in range(count)]
        parts = [micro_batches(rollouts, config, self._topology.device, places) for places in dealt]
        with span(REFERENCE):
            self._needs(REFERENCE)
            flat = [self._informed(batch) for part in parts for batch in part]
        self._needs(TRAIN)
        rollouts, flat = with_advantages(rollouts, flat, config, self._weights, self._topology)
        behind = iter(flat)
        parts = [[next(behind) for _ in part] for part in parts]
        denominators = [self._denominator([rollouts[at] for at in places]) for places in dealt]
        learnt = Learnt(rollouts, [], [])
        for part, denominator in list(zip(parts, denominators, strict=True)) * config.updates_per_rollout:
            if self._critic is not None:
                learnt.taught.append(_step(self._critic.engine, part, self._critic.loss, denominator))
            if config.critic is None or step >= config.critic.warmup_steps:
                learnt.updates.append(
                    _step(self._engine, part, self._loss, denominator, trunk_of=lambda batch: batch.trunk)
                )
        return learnt

    def _informed(self, batch: RolloutBatch) -> RolloutBatch:
        """The batch with what the reference policy, the critic and, where it is asked, the policy say of its tokens."""
        # Once a rollout: neither its tokens nor these policies change from update to update.
        config, reference_policy = self._config, self._reference_policy
        if reference_policy is not None:
            reference_N, batch = self._logprobs(reference_policy, batch, self._frozen if self._shared else 0)
            batch = replace(batch, reference_N=reference_N)
        if config.importance is not None:
            own_N, batch = self._logprobs(self._engine.model, batch, 0 if batch.trunk else self._frozen)
            batch = corrected(batch, own_N, config.importance)
        return batch if self._critic is None else self._critic.informed(batch)

    def _logprobs(self, model: Model, batch: RolloutBatch, blocks: int) -> tuple[Tensor, RolloutBatch]:
        """Those of the batch's tokens, and the batch with the trunk of so many blocks, if any."""
        with keeping_trunk(model.chunks[0], blocks) as kept:
            logprob_N = rollout_logprobs(batch, model, self._config, self._vocab_limit)
        return logprob_N, replace(batch, trunk=kept[0]) if kept else batch

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


def _step(
    engine: Engine,
    part: Sequence[RolloutBatch],
    loss: LossFn[RolloutBatch],
    denominator: float,
    trunk_of: TrunkOf[RolloutBatch] = lambda batch: None,
) -> StepResult:
    return engine.step(part, loss, denominator=denominator, rows_of=lambda batch: batch.rows, trunk_of=trunk_of)
