"""The reference gradient as AdamW's next step would meet it: the single direction that predicts best what a step does.

What a step on a text does to the reference depends on more than two gradients: the step's own square enters the second
moment before that divides, and momentum moves the weights to where the reference gradient counts. Both are much the
same for all texts, so they are read off a few typical batches. (Clipping is not the same for all: see
`first_order.dot`.)

AdamW is Loshchilov and Hutter's, arXiv 1711.05101, clipping Megatron's. Weight decay is left out: it is the same
whatever the text.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from synpro_engine.config import UserError
from synpro_engine.dist import broadcast_object
from synpro_engine.influence.directions.direction import Direction, displaced, inner
from synpro_engine.influence.directions.gradient import advancing, mean_direction, mean_gradient
from synpro_engine.influence.directions.optimizer_state import optimizer_values
from synpro_engine.model.model import Model
from synpro_engine.train.checkpoint_pieces import updates_made
from synpro_engine.train.engine import Engine
from synpro_engine.train.losses import LabelledBatch

_CLIP_EPS = 1e-6  # Megatron's, in clip / (norm + eps)


class NoDirectionError(UserError):
    """Gradients that are 0 or not finite show no way to go."""


def next_step_direction(
    engine: Engine,
    reference: Sequence[LabelledBatch],
    upcoming: Sequence[Sequence[LabelledBatch]],
    *,
    show_progress: bool = False,
) -> Direction:
    """AdamW's step along the gradient g of `reference`, taken where a typical step from theta leads; <g, v> = 1.

    reference: this rank's micro-batches of it. upcoming: steps' micro-batches of what training reads next, a few; the
    mean of their updates is the typical step. The mean of their squared clipped gradients, and of g's own, is what the
    second moment takes in before it divides: without it, words that training has not seen for long, whose moment is
    near 0, would rule every score. A text's score along v is by how much the step that lowers the reference loss by one
    nat per token lowers the text's, to first order. Collective over the job; the weights are as before afterwards, in
    bf16 the typical step is rounded to their precision. Raises UserError when `reference` has not a single label,
    NoDirectionError when a gradient is not finite or the reference's is 0, ValueError when `upcoming` is empty.
    """
    named = next_step_directions(engine, {"": reference}, upcoming, weights={"": 1.0}, show_progress=show_progress)
    return next(v for _, v in named)


def next_step_directions(
    engine: Engine,
    references: Mapping[str, Sequence[LabelledBatch]],
    upcoming: Sequence[Sequence[LabelledBatch]],
    *,
    weights: Mapping[str, float],
    show_progress: bool = False,
) -> Iterator[tuple[str | None, Direction]]:
    """The same of several references, by name: first None with the direction of their weighted mean loss.

    Where there are several, each one's own follows: through the second moment that a step along the mean would leave,
    so that the first is a sum of the others, and scores along all of them can be compared. A gradient is held for each.
    Arguments and errors are otherwise those of `next_step_direction`; collective with each item.
    """
    model, adamw = engine.model, NextAdamW(engine)
    update, square = _typical_step(model, adamw, upcoming, show_progress=show_progress)
    # Renewing a direction within training peaks at 5.3 copies of the model, because what is used up is freed or
    # overwritten.
    adamw.forget_momentum()
    with displaced(model, Direction(update), -1.0):
        gradients = {
            name: mean_gradient(model, batches, label=f"{name} gradient".strip() if show_progress else None)
            for name, batches in references.items()
        }
    del update
    gradient = mean_direction(gradients, weights)
    factor = adamw.clip_factor(gradient)
    for name, g in gradient.tensors.items():
        # Only in the square is g clipped: v is scaled to <g, v> = 1 below, where a factor of the numerator cancels.
        mean = square[name].addcmul_(g, g, value=factor**2).div_(len(upcoming) + 1)
        square[name] = adamw.denominator(name, mean)
    del adamw
    # Without the learning rate, which a schedule may have brought to 0 and the scale takes off anyway.
    yield None, _unit(model, gradient, square)
    if len(gradients) > 1:
        del gradient
        for name in references:
            yield name, _unit(model, gradients.pop(name), square)


def _unit(model: Model, gradient: Direction, denominators: Mapping[str, Tensor]) -> Direction:
    """v = c g / denominators with <g, v> = 1."""
    v = Direction({name: g / denominators[name] for name, g in gradient.tensors.items()}, tangent=True)
    drop = broadcast_object(inner(model, gradient, v), model.topology)  # replicas' sums may differ in the last bit
    # NaN fails the comparison too.
    if not (drop > 0.0 and math.isfinite(drop)):
        raise NoDirectionError(
            f"the gradients show no direction: the reference's times AdamW's step along it is {drop}"
        )
    for tensor in v.tensors.values():
        tensor.div_(drop)
    return v


def _typical_step(
    model: Model, adamw: NextAdamW, upcoming: Sequence[Sequence[LabelledBatch]], *, show_progress: bool
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """(mean update, sum of squared clipped gradients) over steps, by parameter."""
    if not upcoming:
        raise ValueError("upcoming: at least one step is needed")
    update: dict[str, Tensor] = {}
    square: dict[str, Tensor] = {}
    with advancing(len(upcoming), "typical step" if show_progress else None, "step", model.topology) as advance:
        # Each from theta: their mean stands for one typical step, not for a walk of several.
        for batches in upcoming:
            _add_step(adamw, mean_gradient(model, batches), update, square)
            advance(1)
    for total in update.values():
        total.div_(len(upcoming))
    return update, square


def _add_step(adamw: NextAdamW, gradient: Direction, update: dict[str, Tensor], square: dict[str, Tensor]) -> None:
    """Add a step's update and squared clipped gradient. Tensor by tensor: a copy of a large model is gigabytes."""
    factor = adamw.clip_factor(gradient)
    for name, g in gradient.tensors.items():
        g.mul_(factor)
        for sums, term in ((update, adamw.update_of(name, g)), (square, g.square())):
            if name in sums:
                sums[name].add_(term)
            else:
                sums[name] = term


def clip_factor(clip: float, norm: float) -> float:
    """What clipping at `clip` multiplies a gradient of this norm by; 1 for clip 0, which clips nothing."""
    return min(1.0, clip / (norm + _CLIP_EPS)) if clip > 0 else 1.0


class NextAdamW:
    """The next step of an engine's AdamW as a function of its gradient. Collective over the job."""

    def __init__(self, engine: Engine) -> None:
        """Takes copies of the moments as they are now; before the first step they are zero.

        Raises UserError for an engine of another optimizer.
        """
        name = engine.optimizer_config.name
        if name != "adamw":
            raise UserError(f"`optimizer.name` is {name}, and only adamw's next step has a direction: take a walk's")
        self._model, self._config, self._lr = engine.model, engine.optimizer_config, engine.lr
        # AdamW's own count, not the engine's steps: skipped ones leave the moments and their corrections as they were.
        updates = updates_made(engine.optimizer, engine.model.topology)
        if updates:
            self._momentum = optimizer_values(engine, "exp_avg")
            self._square = optimizer_values(engine, "exp_avg_sq")
        else:
            zeros = {n: torch.zeros_like(p, dtype=torch.float32) for n, p in engine.model.named_parameters()}
            # One set for both: neither is ever written to.
            self._momentum = self._square = zeros
        # What corrects moments for their start (Kingma and Ba, arXiv 1412.6980).
        self._corrections = 1.0 - self._config.beta1 ** (updates + 1), 1.0 - self._config.beta2 ** (updates + 1)

    def forget_momentum(self) -> None:
        """Free the copy of the first moment; `update_of` cannot be asked afterwards."""
        self._momentum = {}

    def clip_factor(self, gradient: Direction) -> float:
        """What clipping multiplies the gradient by."""
        return clip_factor(self._config.clip, inner(self._model, gradient, gradient) ** 0.5)

    def clipped(self, gradient: Direction) -> Direction:
        """The gradient as the moments will see it."""
        return gradient.scaled(self.clip_factor(gradient))

    def update(self, clipped: Direction) -> Direction:
        """theta - theta' of a step with this clipped gradient, without decay."""
        return Direction({name: self.update_of(name, g) for name, g in clipped.tensors.items()})

    def update_of(self, name: str, clipped: Tensor) -> Tensor:
        """The same of one parameter, in its shape."""
        # beta1 m + (1 - beta1) g in a new tensor: the copy of the moment serves every sampled step.
        mixed = torch.lerp(clipped, self._momentum[name], self._config.beta1)
        return mixed.mul_(self._lr / self._corrections[0]).div_(self.denominator(name, clipped.square()))

    def preconditioned(self, gradient: Direction, square: Direction) -> Direction:
        """lr (1 - beta1) g / (sqrt(v') + eps), with the moments corrected: the part of `update` that is linear in g.

        v' is the second moment after a step whose clipped gradient has this square.
        """
        factor = self._lr * (1.0 - self._config.beta1) / self._corrections[0]
        pairs = gradient.tensors.items()
        return Direction({name: g / self.denominator(name, square.tensors[name]) for name, g in pairs}).scaled(factor)

    def denominator(self, name: str, square: Tensor) -> Tensor:
        """sqrt(v') + eps of one parameter, v' being its second moment after a step with this square."""
        # By the live second moment alone words that training has not seen for long divide by little more than eps and
        # rule every score: LDS 0.12 to 0.15, against 0.68 to 0.84 by the next one (docs/influence.md).
        after = torch.lerp(square, self._square[name], self._config.beta2)
        return after.div_(self._corrections[1]).sqrt_().add_(self._config.eps)
