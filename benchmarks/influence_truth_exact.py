"""AdamW's next step written out for one text's gradient, and the reference gradient that meets it.

The step depends on a text in three ways that <grad L(x), D g_ref> with a fixed D leaves out: clipping divides by the
text's gradient norm, the second moment takes its square in before it divides, and the step as a whole (momentum and
all) moves the point at which the reference gradient counts. Here each of them can be put in, so that it shows which
matter. Knows flat gradients and moments; takes no step.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from benchmarks.influence_truth_setup import Setup
from synpro_engine.influence import Direction, mean_gradient
from synpro_engine.influence.direction import displaced
from synpro_engine.influence.reference import optimizer_values
from synpro_engine.train.engine import Engine
from synpro_engine.train.losses import LabelledBatch

_CLIP_EPS = 1e-6  # Megatron's, in clip / (norm + eps)


def flat(tensors: Iterable[Tensor]) -> Tensor:
    """One vector of them all."""
    return torch.cat([tensor.detach().flatten() for tensor in tensors])


class LiveAdamW:
    """The next step of an engine's AdamW as a function of the gradient (Loshchilov and Hutter, arXiv 1711.05101).

    Weight decay is left out: it is the same for every gradient. Whole models on one rank only.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine, self._config, self._taken = engine, engine.optimizer_config, engine.step_index
        self._momentum = flat(optimizer_values(engine, "exp_avg").values())
        self._square = flat(optimizer_values(engine, "exp_avg_sq").values())

    def clipped(self, gradient_P: Tensor) -> Tensor:
        """The gradient as the moments will see it."""
        return gradient_P * self.clip_factor(float(gradient_P.norm()))

    def clip_factor(self, norm: float) -> float:
        """What clipping multiplies a gradient of this norm by."""
        return min(1.0, self._config.clip / (norm + _CLIP_EPS)) if self._config.clip > 0 else 1.0

    def update(self, gradient_P: Tensor) -> Tensor:
        """theta - theta' of a step with this gradient, [P], without decay."""
        config, clipped_P = self._config, self.clipped(gradient_P)
        momentum_P = torch.lerp(clipped_P, self._momentum, config.beta1)
        square_P = torch.lerp(clipped_P.square(), self._square, config.beta2)
        return self._rate() * momentum_P / self._denominator(square_P)

    def preconditioned(self, reference_P: Tensor, square_of_next_P: Tensor) -> Tensor:
        """The direction lr (1 - beta1) g_ref / (sqrt(v') + eps): the part of `update` that is linear in the gradient.

        v' is the second moment after a step whose clipped gradient has the square `square_of_next_P`.
        """
        square_P = torch.lerp(square_of_next_P, self._square, self._config.beta2)
        return self._rate() * (1.0 - self._config.beta1) * reference_P / self._denominator(square_P)

    def _rate(self) -> float:
        return self._engine.lr / (1.0 - self._config.beta1 ** (self._taken + 1))

    def _denominator(self, square_P: Tensor) -> Tensor:
        return (square_P / (1.0 - self._config.beta2 ** (self._taken + 1))).sqrt() + self._config.eps

    def direction(self, vector_P: Tensor) -> Direction:
        """A vector as a direction over the engine's parameters."""
        names, parameters = zip(*self._engine.model.named_parameters(), strict=True)
        parts = vector_P.split([parameter.numel() for parameter in parameters])
        pairs = zip(names, parts, parameters, strict=True)
        return Direction({name: part.view_as(parameter) for name, part, parameter in pairs})

    def gradient(self, batches: Sequence[LabelledBatch], after_P: Tensor | None = None) -> Tensor:
        """The mean gradient over the labels of `batches`, [P], at theta or where the update `after_P` leads."""
        model = self._engine.model
        if after_P is None:
            return flat(mean_gradient(model, batches).tensors.values())
        with displaced(model, self.direction(after_P), -1.0):
            return flat(mean_gradient(model, batches).tensors.values())


class Steps:
    """Steps on single texts, from what a sample of the candidates says about a typical one."""

    def __init__(self, setup: Setup, engine: Engine, sample: int) -> None:
        """sample: candidates that the typical step is the mean of; they are spread evenly over all."""
        self._setup, self.adamw = setup, LiveAdamW(engine)
        mates = [self.of(ids) for ids in setup.mates]
        self._mates = torch.stack(mates).sum(0)
        self.among_mates_P = self.adamw.update(self._mates / len(mates))
        """The update of a batch of mates alone."""
        every = max(1, len(setup.candidates) // sample)
        gradients = [self.of(candidate.ids) for candidate in setup.candidates[::every]]
        self.alone_P = torch.stack([self.adamw.update(gradient) for gradient in gradients]).mean(0)
        """The mean update of steps on single candidates."""
        self.square_P = torch.stack([self.adamw.clipped(gradient).square() for gradient in gradients]).mean(0)
        """The mean square of their clipped gradients."""

    def of(self, ids: Sequence[int]) -> Tensor:
        """The gradient of a text's mean cross-entropy, [P]."""
        return self.adamw.gradient(self._setup.batches([ids], 1))

    def with_mates(self, gradient_P: Tensor) -> Tensor:
        """The gradient of a batch of the mates and a text."""
        return (self._mates + gradient_P) / (len(self._setup.mates) + 1)
