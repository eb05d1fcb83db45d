"""What the stages of a run have in common: its models, and its text."""

from __future__ import annotations

from dataclasses import dataclass

from synpro_engine.cycle.forecast.models import Models
from synpro_engine.cycle.forecast.text import TEXT_BYTES, id_bytes
from synpro_engine.cycle.recipe import Recipe


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """By which the costs of a stage are counted."""

    recipe: Recipe
    """As the arm has it that the stage is of."""
    models: Models
    train_tokens: float | None
    """Of the organic text that is trained on; None where that is not known."""

    @property
    def id_bytes(self) -> int:
        """Of a token of the pretrained model's in a shard."""
        return id_bytes(self.recipe.model.vocab_size)

    def stored(self, tokens: float) -> float:
        """Bytes of so many tokens as documents and as shards."""
        return tokens * (TEXT_BYTES + self.id_bytes)

    @property
    def influence_passes(self) -> float:
        """What influence takes of a text, in forward and backward passes: two forwards, or one of each kind."""
        return 2 / 3 if self.recipe.probe.kind == "walk" else 1.0
