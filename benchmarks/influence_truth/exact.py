"""The optimizer's next step on one text, and the reference gradient that meets it.

The step depends on a text in three ways that <grad L(x), D g_ref> with a fixed D leaves out: clipping divides by the
text's gradient norm, the second moment takes its square in before it divides (Muon orthogonalises its gradient and
momentum together), and the step as a whole moves the point at which the reference gradient counts. Here each of them
can be put in, so that it shows which matter. Knows gradients and moments; takes no step.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce

from torch import Tensor

from benchmarks.influence_truth.setup import Setup
from synpro_engine.influence import Direction, mean_gradient
from synpro_engine.influence.directions import NextAdamW, NextStep, clip_factor, displaced, inner, optimizer_values
from synpro_engine.train.engine import Engine
from synpro_engine.train.losses import LabelledBatch


class Steps:
    """Steps on single texts, from what a sample of the candidates says about a typical one."""

    def __init__(self, setup: Setup, engine: Engine, sample: int) -> None:
        """sample: candidates that the typical step is the mean of; they are spread evenly over all."""
        self._setup, self._engine, self.next, self._adamw = setup, engine, NextStep(engine), NextAdamW(engine)
        mates = [self.of(ids) for ids in setup.mates]
        self._mates = _mean(mates).scaled(len(mates))
        self.among_mates = self.update(_mean(mates))
        """The update of a batch of mates alone."""
        every = max(1, len(setup.candidates) // sample)
        sampled = [self.of(candidate.ids) for candidate in setup.candidates[::every]]
        clipped = [gradient.scaled(self.next.clip_factor(gradient)) for gradient in sampled]
        self.alone = _mean([self.update(gradient) for gradient in sampled])
        """The mean update of steps on single candidates."""
        self.square = _mean([gradient.squared() for gradient in clipped])
        """The mean square of their clipped gradients."""

    def of(self, ids: Sequence[int]) -> Direction:
        """The gradient of a text's mean cross-entropy."""
        return self.gradient(self._setup.batches([ids], 1))

    def update(self, gradient: Direction) -> Direction:
        """theta - theta' of a step with this gradient."""
        return Direction(dict(self.next.update(gradient.scaled(1.0))))

    def with_mates(self, gradient: Direction) -> Direction:
        """The gradient of a batch of the mates and a text."""
        return self._mates.plus(gradient).scaled(1.0 / (len(self._setup.mates) + 1))

    def gradient(self, batches: Sequence[LabelledBatch], after: Direction | None = None) -> Direction:
        """The mean gradient over the labels of `batches`, at theta or where the update `after` leads."""
        model = self._engine.model
        if after is None:
            return mean_gradient(model, batches)
        with displaced(model, after, -1.0):
            return mean_gradient(model, batches)

    def norm(self, gradient: Direction) -> float:
        """Its length."""
        return inner(self._engine.model, gradient, gradient) ** 0.5

    def clip_factor(self, norm: float) -> float:
        """What clipping multiplies a gradient of this norm by."""
        return clip_factor(self._engine.optimizer_config.clip, norm)

    def by_adamw(self, gradient: Direction, square: Direction) -> Direction:
        """lr (1 - beta1) g / (sqrt(v') + eps), with the moments corrected: what of AdamW's step is linear in g.

        v' is the second moment after a step whose clipped gradient has this square.
        """
        adamw, divided = self._adamw, dict[str, Tensor]()
        for name, g in gradient.tensors.items():
            part, squared = (adamw.part_of(name, whole) for whole in (g, square.tensors[name]))
            divided[name] = adamw.whole_of(name, part / adamw.denominator(name, squared))
        return Direction(divided).scaled(self._engine.lr * self._adamw.gradient_share)

    def live_square(self) -> Direction:
        """The squared gradient whose coming leaves the second moment as it is, but for the correction of its start."""
        correction = 1.0 - self._engine.optimizer_config.beta2**self._engine.step_index
        return Direction(optimizer_values(self._engine, "exp_avg_sq")).scaled(1.0 / correction)


def _mean(directions: Sequence[Direction]) -> Direction:
    return reduce(Direction.plus, directions).scaled(1.0 / len(directions))
