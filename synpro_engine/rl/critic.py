"""PPO's critic: a model that foretells, at each token of a completion, the reward that is still to come.

It begins as the policy, with a value head of zeros in the place of the output layer, and has an engine, a schedule and
checkpoints of its own.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from synpro_engine.config import UserError
from synpro_engine.data import IGNORE
from synpro_engine.model.build import freeze_but_last
from synpro_engine.model.model import Model
from synpro_engine.rl.config import TuneConfig
from synpro_engine.rl.policy import make_reference_policy
from synpro_engine.rl.types import RolloutBatch
from synpro_engine.train.checkpoint import load_checkpoint, save_checkpoint
from synpro_engine.train.checkpoint_directory import CHECKPOINTS, prune_checkpoints, step_path
from synpro_engine.train.divergence import SkipGuard
from synpro_engine.train.engine import Engine, StepResult
from synpro_engine.train.losses import LossTerms

_PLACE = Path(CHECKPOINTS, "critic")  # beside the policy's, and gone with them when the tuning is done


class Critic:
    """A policy's critic. Its methods are collective over the job."""

    def __init__(self, policy: Model, config: TuneConfig, operation: str) -> None:
        """Copy the policy: call it before the policy is trained. UserError where it has too few blocks."""
        assert config.critic is not None
        self.config, model = config.critic, make_reference_policy(policy)
        if self.config.train_last_blocks is None:
            for parameter in model.parameters():
                parameter.requires_grad_(True)
        else:
            freeze_but_last(model, self.config.train_last_blocks)
        # What the policy freezes is shared with it, and the critic may train it.
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.clone()
        if not model.config.tie_embeddings:
            model.output_weight().requires_grad_(False)  # no value comes through it
        model.train()
        _add_value_head(model)
        self.engine = Engine(model, self.config.optimizer, schedule=config.schedule_of(config.steps))
        self.guard = SkipGuard(
            what=f"the critic of tuning {operation}",
            lr_key=f"tune.{operation}.critic.optimizer.lr",
            config=config.skip,
        )

    @torch.no_grad()
    def informed(self, batch: RolloutBatch) -> RolloutBatch:
        """The batch with what the critic foretells before each of its tokens, fp32 [N]."""
        model = self.engine.model
        return replace(batch, value_N=_values(model, model.hidden(batch.tokens_BS, batch.rows), batch.labels_BS))

    def loss(self, model: Model, hidden_BSH: Tensor, batch: RolloutBatch) -> LossTerms:
        """Half the squared error, of the worse of the value and the value held near the rollout's (PPO's practice).

        max((V - R)^2, (V_old + clip(V - V_old, -c, c) - R)^2) / 2 by the tokens' weights (arXiv 2005.12729, section 3).
        """
        assert batch.value_N is not None and batch.return_N is not None, "returns come before the critic learns"
        value_N = _values(model, hidden_BSH, batch.labels_BS)
        square_N = (value_N - batch.return_N).square()
        held_N = torch.zeros_like(square_N, dtype=torch.bool)
        if self.config.clip is not None:
            moved_N = value_N - batch.value_N
            limited_N = batch.value_N + moved_N.clamp(-self.config.clip, self.config.clip)
            worse_N = (limited_N - batch.return_N).square()
            # Of values within the clip the two squares differ by rounding.
            held_N = (moved_N.abs() > self.config.clip) & (worse_N > square_N)
            square_N = torch.where(held_N, worse_N, square_N)
        counts_N = batch.weight_N != 0
        objective = 0.5 * (batch.weight_N * square_N.masked_fill(~counts_N, 0.0)).sum()
        ahead_N, return_N = batch.return_N[counts_N], batch.return_N[counts_N]
        ahead_N = ahead_N - batch.value_N[counts_N]
        sums = {
            "clipped": held_N[counts_N].sum().float(),
            "tokens": counts_N.sum().float(),
            "value": batch.value_N[counts_N].sum(),
            "return": return_N.sum(),
            "return_square": return_N.double().square().sum(),
            "error": ahead_N.sum(),
            "error_square": ahead_N.double().square().sum(),
        }
        return LossTerms(objective=objective, loss=objective, extras=sums)

    def save(self, directory: Path, step: int, keep: int) -> None:
        """Write a checkpoint for the policy's of the same step, ahead of it."""
        extra = {"step": step, "guard": self.guard.state_dict()}
        save_checkpoint(step_path(directory / _PLACE, step), self.engine, extra)
        # One more than of the policy: a kill before its save leaves it at the one before.
        prune_checkpoints(directory / _PLACE, keep + 1, self.engine.model.topology)

    def resume(self, directory: Path, step: int) -> None:
        """Go on from the checkpoint of a step; UserError when there is none."""
        path = step_path(directory / _PLACE, step)
        try:
            extra = load_checkpoint(path, self.engine.model, self.engine)
        except UserError as error:
            raise UserError(f"the critic at step {step} of the policy: {error}") from None
        self.guard.load_state_dict(extra["guard"])


def _add_value_head(model: Model) -> None:
    # In the chunk, so that gradient buffers, optimizer and checkpoints take it along. Alike on all tensor-parallel
    # ranks, which compute the same values from the same hidden states.
    head = torch.nn.Linear(model.config.d_model, 1, device=model.topology.device, dtype=model.dtype)
    torch.nn.init.zeros_(head.weight)
    torch.nn.init.zeros_(head.bias)
    model.chunks[0].value_head = head


def _values(model: Model, hidden_BSH: Tensor, labels_BS: Tensor) -> Tensor:
    """Of each labelled position, fp32 [N]."""
    head: Any = model.chunks[0].value_head
    hidden_NH = hidden_BSH[labels_BS != IGNORE].float()
    return F.linear(hidden_NH, head.weight.float(), head.bias.float())[:, 0]


def critic_values(results: list[StepResult]) -> dict[str, float]:
    """What of a step's critic updates is logged: of the last one, but for what the rollout's own values show.

    explained_variance: 1 - var(return - value) / var(return), of the values before any update; 1 where all is
    foretold, 0 where no more than the mean is. Updates without tokens that count are passed over where there are
    others; where there are none, what is a mean over tokens is NaN.
    """
    shown = [result for result in results if result.extras["tokens"]] or results
    first, last = shown[0].extras, shown[-1]
    tokens = first["tokens"] or math.nan
    spread, left = (first[f"{name}_square"] / tokens - (first[name] / tokens) ** 2 for name in ("return", "error"))
    return {
        "critic/loss": last.loss,
        "critic/value": first["value"] / tokens,
        "critic/return": first["return"] / tokens,
        "critic/explained_variance": 1.0 - left / spread if spread > 0.0 else math.nan,
        "critic/clip_fraction": last.extras["clipped"] / (last.extras["tokens"] or math.nan),
        "critic/grad_norm": last.grad_norm,
        "critic/lr": results[-1].lr,
    }
