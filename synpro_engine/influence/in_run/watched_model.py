"""A model that passes on what a loss asks of its output layer, with how the results move along directions.

Whatever loss is used, it has the output layer's results from one of two methods of `Model`; both are overridden here.
The loss is given exactly what the model itself would give it.
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
    """The same model, which reports each result of its output layer to whoever scores the step."""

    direction_KVH: Tensor | None
    """Directions of the output weight; None where nothing moves it."""
    per_token: bool
    """Whether `fused` is given each position's slope, or the sum over those of a call."""
    fused: Callable[[Tensor, Tensor | None], None]
    """Called with the loss of `cross_entropy_from_hidden`, a sum whose gradients are made already, and its slopes along
    the directions, [K, *target.shape] or [K] (this rank's part of them)."""
    scored: Callable[[Tensor, Tensor, LogProbs], None] | None = None
    """Called with hidden, targets and the results of `logprobs_from_hidden`, which autograd will differentiate."""

    @classmethod
    def of(cls, model: Model, **further: Any) -> WatchedModel:
        """`model`, watched; the arguments are the further fields."""
        # By Model's fields, so that one added there is passed on; chunks and weights are shared, not copied.
        return cls(**{f.name: getattr(model, f.name) for f in fields(Model)}, **further)

    def cross_entropy_from_hidden(
        self,
        hidden: Tensor,
        target: Tensor,
        *,
        z_loss: float = 0.0,
        along: Tensor | None = None,
        along_tokens: bool = False,
    ) -> CrossEntropy:
        """As `Model`'s; the directions are those of the fields."""
        assert along is None and not along_tokens, "a loss that takes slopes itself cannot be watched"
        result = super().cross_entropy_from_hidden(
            hidden, target, z_loss=z_loss, along=self.direction_KVH, along_tokens=self.per_token
        )
        self.fused(result.loss, result.along)
        return result

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
        results = super().logprobs_from_hidden(
            hidden, target, temperature=temperature, entropy=entropy, materialised=materialised
        )
        if self.scored is not None:
            # `output_pass`, which moves them along v, knows neither temperature nor entropy.
            assert temperature == 1.0 and not entropy, "only plain log-probabilities are scored"
            self.scored(hidden, target, results)
        return results
