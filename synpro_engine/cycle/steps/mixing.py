"""How operations share the slices of a round by what each of them earned in the one before."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from synpro_engine.config import Record
from synpro_engine.cycle.run_layout import CORPUS
from synpro_engine.synth import GenerateConfig, read_yield


class Mixture(Record):
    """What `MIXTURE` holds."""

    earned: dict[str, float | None]
    """By operation: mean reward `influence` of the texts accepted in the round before, in nats per token; None where
    there were none."""
    share: float
    """Of the slices, that this operation works on."""

    def __str__(self) -> str:
        """One line for the user."""
        told = (f"{name} {'nothing' if value is None else f'{value:.4g}'}" for name, value in self.earned.items())
        return f"works on {self.share:.0%} of the slices, by what was earned in the round before: {', '.join(told)}"


def earned_mixture(config: GenerateConfig, operation: str, earlier: Mapping[str, Path]) -> Mixture:
    """The share of an operation; earlier: the `generate` stages of the round before, by operation."""
    earned: dict[str, float | None] = {}
    for name, stage in earlier.items():
        counted = read_yield(stage / CORPUS).by_operation.get(name)
        earned[name] = None if counted is None else counted.mean_rewards.get("influence")
    best = max((value for value in earned.values() if value is not None), default=0.0)
    if best <= 0:  # none of them helped, so their order says nothing that slices should be dealt by
        return Mixture(earned=earned, share=config.shares.get(operation, 1.0))
    part = config.most_share * (earned[operation] or 0.0) / best
    return Mixture(earned=earned, share=max(config.least_share, part))
