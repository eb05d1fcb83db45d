"""The policy as it was before tuning, at the price of its trainable blocks alone.

Frozen parameters never change, so the reference policy reads the policy's own; what is trained is copied.
"""

from __future__ import annotations

import torch

from synpro_engine.model.build import build_model, freeze_but_last
from synpro_engine.model.model import Model
from synpro_engine.rl.config import GRPOConfig


def make_reference_policy(policy: Model) -> Model:
    """A model that computes what `policy` computes now and keeps doing so while `policy` is trained.

    Parameters of `policy` that do not require gradients are shared (same storage), the others are copied. Call it
    before training; changing what is frozen afterwards would move the copy too.
    """
    reference_policy = build_model(policy.config, policy.topology, dtype=policy.dtype, seed=None)
    with torch.no_grad():
        for (name, theirs), (name_here, copy) in zip(
            policy.named_parameters(), reference_policy.named_parameters(), strict=True
        ):
            assert name == name_here
            copy.requires_grad_(False)
            if theirs.requires_grad:
                copy.copy_(theirs)
            else:
                copy.data = theirs.data
    reference_policy.train(False)
    return reference_policy


def prepare_policy(policy: Model, config: GRPOConfig) -> Model | None:
    """Freeze what `config` does not train and return the reference policy, or None where KL has no weight."""
    if config.train_last_blocks is not None:
        freeze_but_last(policy, config.train_last_blocks)
    return make_reference_policy(policy) if config.kl_beta > 0.0 else None
