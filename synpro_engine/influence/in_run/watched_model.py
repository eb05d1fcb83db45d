"""The output layer as a loss reads it, along directions: a model that tells how each of its results moves.

Whatever loss is used, it has the output layer's results from one of two methods of `Model`; both are listened to here.
The loss is given exactly what the model itself would give it. Knows no reader, and nothing of other layers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

from torch import Tensor

from synpro_engine.model.model import Model
from synpro_kernels import CrossEntropy, LogProbs


@dataclass(frozen=True, kw_only=True)
class WatchedModel(Model):
    """The same model, which tells of what a loss reads."""

    direction_KVH: Tensor | None
    """Directions of the output weight; None where nothing moves it."""
    per_token: bool
    """Whether `fused` is told each position's share, or the sum over a call's."""
    fused: Callable[[Tensor, Tensor | None], None]
    """Called with a sum that has its gradients already, and its slopes [K, *target.shape] or [K] along the directions
    (this rank's part of them)."""
    scored: Callable[[Tensor, Tensor, LogProbs], None] | None = None
    """Called with hidden, targets and log-probabilities that autograd will differentiate."""

    @classmethod
    def of(cls, model: Model, **watch: Any) -> WatchedModel:
        """`model`, watched; the arguments are the further fields."""
        return cls(**{f.name: getattr(model, f.name) for f in fields(Model)}, **watch)

    def cross_entropy_from_hidden(
        self,
        hidden: Tensor,
        target: Tensor,
        *,
        z_loss: float = 0.0,
        along: Tensor | None = None,
        along_tokens: bool = False,
    ) -> CrossEntropy:
        """As `Model`'s; the directions are the watcher's."""
        assert along is None and not along_tokens, "a loss that takes slopes itself cannot be watched"
        found = super().cross_entropy_from_hidden(
            hidden, target, z_loss=z_loss, along=self.direction_KVH, along_tokens=self.per_token
        )
        self.fused(found.loss, found.along)
        return found

    def logprobs_from_hidden(
        self,
        hidden: Tensor,
        target: Tensor,
        *,
        temperature: float = 1.0,
        entropy: bool = False,
        materialised: bool = False,
    ) -> LogProbs:
        """As `Model`'s; where it is listened to, at temperature 1 and without entropy: nothing else is scored."""
        found = super().logprobs_from_hidden(
            hidden, target, temperature=temperature, entropy=entropy, materialised=materialised
        )
        if self.scored is not None:
            assert temperature == 1.0 and not entropy, "only plain log-probabilities are scored"
            self.scored(hidden, target, found)
        return found
