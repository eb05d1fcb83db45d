"""The truth that scores are held to: real AdamW steps from theta, and by how much the reference loss drops.

Every measurement starts from the same weights and the same live optimizer state. Knows steps and losses; no estimator.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.influence_truth.settings import TruthSettings
from benchmarks.influence_truth.setup import RowMeanLoss, Setup
from benchmarks.influence_truth.texts import pool_of_groups
from synpro_engine.influence.batching import WindowBatch
from synpro_engine.train.engine import Engine
from synpro_engine.train.evaluation import held_out_loss

SETS = ("reference", "held_out")


class Rewind:
    """Puts an engine back to where it was when this was made: weights, moments and counters, bit for bit."""

    def __init__(self, engine: Engine) -> None:
        self._engine, self._step = engine, engine.step_index
        optimizers = [part.optimizer for part in engine.optimizer.chained_optimizers]
        live: list[Tensor] = [parameter.data for parameter in engine.model.parameters()]
        for optimizer in optimizers:
            live += [value for state in optimizer.state.values() for value in state.values() if torch.is_tensor(value)]
        self._kept = [(tensor, tensor.clone()) for tensor in live]
        groups: list[dict[str, Any]] = [group for each in optimizers for group in each.param_groups if "step" in group]
        self._counted = [(group, group["step"]) for group in groups]

    def __call__(self) -> None:
        """Go back."""
        for tensor, before in self._kept:
            tensor.copy_(before)
        for group, step in self._counted:
            group["step"] = step
        self._engine.step_index = self._step


class Truth:
    """Drops of the reference loss, in nats per token, that steps on given candidates cause."""

    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        self._engine = setup.engine()
        self._rewind = Rewind(self._engine)
        self.losses = self._measured()
        mates = setup.batches(setup.mates, len(setup.mates))
        assert len(mates) == 1, "mates are one micro-batch"
        self._mates = mates[0]

    def alone(self, index: int) -> dict[str, float]:
        """One step whose batch is candidate `index`."""
        [batch] = self._batches([index])
        return self._after([[batch]], 1)

    def among_mates(self, index: int) -> dict[str, float]:
        """One step whose batch is candidate `index` and the mates, every sequence of the same weight."""
        [batch] = self._batches([index])
        return self._after([[self._mates, batch]], 1 + len(self._setup.mates), ("reference",))

    def subset(self, number: int) -> tuple[list[int], dict[str, float]]:
        """(groups, drops): `subset_steps` steps on a random half of the pool's groups, in a random order."""
        settings = self._setup.settings
        groups, steps = subset_plan(settings, number)
        return groups, self._after([self._batches(step) for step in steps], settings.subset_batch)

    def _batches(self, indices: Sequence[int]) -> list[WindowBatch]:
        return self._setup.batches([self._setup.candidates[index].ids for index in indices], len(indices))

    def _after(
        self, steps: Sequence[Sequence[WindowBatch]], denominator: int, sets: Sequence[str] = SETS
    ) -> dict[str, float]:
        loss = RowMeanLoss()
        for batches in steps:
            done = self._engine.step(batches, loss, denominator=float(denominator))
            assert not done.skipped, "a candidate's gradient is not finite"
        after = self._measured(sets)
        self._rewind()
        return {name: self.losses[name] - after[name] for name in sets}

    def _measured(self, sets: Sequence[str] = SETS) -> dict[str, float]:
        given = {"reference": self._setup.reference, "held_out": self._setup.held_out}
        rows = self._setup.settings.batch
        return {name: held_out_loss(self._engine.model, given[name], micro_batch=rows) for name in sets}


def subset_plan(settings: TruthSettings, number: int) -> tuple[list[int], list[list[int]]]:
    """(places in the pool of the groups that subset `number` trains on, candidates of each of its steps)."""
    pool, rng = pool_of_groups(settings), np.random.default_rng([settings.seed, 2, number])
    groups = sorted(rng.permutation(len(pool))[: settings.groups_of_a_subset].tolist())
    order = rng.permutation([index for group in groups for index in pool[group]])
    return groups, order.reshape(settings.subset_steps, settings.subset_batch).tolist()
