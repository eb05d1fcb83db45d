"""The reference gradient as the optimizer's next step would meet it, the direction that predicts best what a step does.

What a step on a text does to the reference depends on more than two gradients: the step's own gradient enters what
divides it (AdamW's second moment, Muon's orthogonalised momentum), and momentum moves the weights to where the
reference gradient counts. Both are much the same for all texts, so they are read off a few typical batches. (Clipping
is not the same for all: see `first_order.dot`.)

What AdamW and Muon each do is in `next_adamw` and `next_muon`; clipping is Megatron's. Weight decay is left out: it is
the same whatever the text.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

from torch import Tensor

from synpro_engine.config import UserError
from synpro_engine.dist import broadcast_object
from synpro_engine.influence.directions.direction import Direction, displaced, inner
from synpro_engine.influence.directions.gradient import advancing, label_count, mean_direction, mean_gradient
from synpro_engine.influence.directions.next_adamw import NextAdamW
from synpro_engine.influence.directions.next_muon import NextMuon
from synpro_engine.model.model import Model
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
    """The optimizer's step along the gradient g of `reference`, where a typical step from theta leads; <g, v> = 1.

    reference: this rank's micro-batches of it. upcoming: steps' micro-batches of what training reads next, a few; the
    mean of their updates is the typical step. The mean of their squared clipped gradients, and of g's own, is what the
    second moment takes in before it divides: without it, words that training has not seen for long, whose moment is
    near 0, would rule every score. Muon's matrices are differentiated at these steps. A text's score along v is by how
    much the step that lowers the reference loss by one nat per token lowers the text's, to first order. Collective over
    the job; the weights are as before afterwards, in bf16 the typical step is rounded to their precision. Raises
    UserError when `reference` has not a single label, NoDirectionError when a gradient is not finite or the reference's
    is 0, ValueError when `upcoming` is empty.
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

    Where there are several, each one's own follows: by what a step along the mean would leave to divide by, so that the
    first is a sum of the others, and scores along all of them can be compared. A gradient is held for each.
    Arguments and errors are otherwise those of `next_step_direction`; collective with each item.
    """
    model, step = engine.model, NextStep(engine)
    update = _typical_update(model, step, upcoming, show_progress=show_progress)
    with displaced(model, Direction(update), -1.0):
        # The weights are where it leads, and theta's own storage waits: three copies of the model in fp32 are all that
        # renewing a direction within training takes, squares and weights and gradient; and one for each further
        # reference, and for the mean of several.
        update.clear()
        gradients = {
            name: mean_gradient(model, batches, label=f"{name} gradient".strip() if show_progress else None)
            for name, batches in references.items()
        }
    gradient = mean_direction(gradients, weights)
    # Only there is the gradient clipped: directions are scaled to <g, v> = 1, where a factor of g cancels.
    step.take_in(gradient)
    step.settle()
    yield None, _unit(model, gradient, step)
    if len(gradients) > 1:
        del gradient
        for name in references:
            yield name, _unit(model, gradients.pop(name), step)


def _unit(model: Model, gradient: Direction, step: NextStep) -> Direction:
    """v = c x what a step makes of g, with <g, v> = 1."""
    v = step.linear(gradient)
    drop = broadcast_object(inner(model, gradient, v), model.topology)  # replicas' sums may differ in the last bit
    # NaN fails the comparison too.
    if not (drop > 0.0 and math.isfinite(drop)):
        raise NoDirectionError(
            f"the gradients show no direction: the reference's times the optimizer's step along it is {drop}"
        )
    for tensor in v.tensors.values():
        tensor.div_(drop)
    return v


def _typical_update(
    model: Model, step: NextStep, upcoming: Sequence[Sequence[LabelledBatch]], *, show_progress: bool
) -> dict[str, Tensor]:
    """The mean update over steps, by parameter; `step` has taken them in. Steps without a label move nothing."""
    if not upcoming:
        raise ValueError("upcoming: at least one step is needed")
    update: dict[str, Tensor] = {}
    upcoming = [batches for batches in upcoming if label_count(model, batches)]
    if not upcoming:
        raise NoDirectionError("the steps to come have not a single token to predict")
    with advancing(len(upcoming), "typical step" if show_progress else None, "step", model.topology) as advance:
        # Each from theta: their mean stands for one typical step, not for a walk of several.
        for batches in upcoming:
            # One by one: a copy of a large model is gigabytes.
            for name, moved in step.parts(mean_gradient(model, batches)):
                _add(update, name, moved)
            advance(1)
    return {name: step.whole(name, update.pop(name).div_(len(upcoming))) for name in list(update)}


def _add(sums: dict[str, Tensor], name: str, term: Tensor) -> None:
    if name in sums:
        sums[name].add_(term)
    else:
        sums[name] = term


def clip_factor(clip: float, norm: float) -> float:
    """What clipping at `clip` multiplies a gradient of this norm by; 1 for clip 0, which clips nothing."""
    return min(1.0, clip / (norm + _CLIP_EPS)) if clip > 0 else 1.0


class NextStep:
    """The next step of an engine's optimizer as a function of its gradient, and what of it is linear.

    Collective over the job.
    """

    def __init__(self, engine: Engine) -> None:
        """Reads moments when it is asked: the engine must not step before the last question."""
        self._model, self._clip = engine.model, engine.optimizer_config.clip
        self._adamw = NextAdamW(engine)
        self._muon = None if engine.muon is None else NextMuon(engine, engine.muon)
        self._of_muon = frozenset() if engine.muon is None else engine.muon.names
        # How much further Muon's part moves the weights than AdamW's, at one schedule's rates.
        self._muon_rate = engine.optimizer_config.muon.lr / engine.optimizer_config.lr
        self._samples = 0
        # Of parts, as AdamW has them: first sums of squared gradients, then what divides.
        self._square: dict[str, Tensor] = {}

    def clip_factor(self, gradient: Direction) -> float:
        """What clipping multiplies the gradient by."""
        return clip_factor(self._clip, inner(self._model, gradient, gradient) ** 0.5)

    def update(self, gradient: Direction) -> Iterator[tuple[str, Tensor]]:
        """theta - theta' of a step with this gradient, which is used up, without decay, by parameter."""
        for name, part in self.parts(gradient, keep=False):
            yield name, self.whole(name, part)

    def parts(self, gradient: Direction, *, keep: bool = True) -> Iterator[tuple[str, Tensor]]:
        """The same in parts that `whole` puts together, of one step or of a sum of several.

        keep: the step becomes one of the typical ones.
        """
        factor = self.clip_factor(gradient)
        for g in gradient.tensors.values():
            g.mul_(factor)
            del g
        self._samples += keep
        matrices, others = self._parted(gradient.tensors)
        del gradient  # so that what is popped is freed
        for name in list(others):
            part = self._adamw.part_of(name, others.pop(name))
            yield name, self._adamw.update_of(name, part)
            if keep:
                _add(self._square, name, part.square())
        if self._muon is not None:
            yield from self._muon.update(matrices, keep=keep).items()

    def whole(self, name: str, part: Tensor) -> Tensor:
        """What `parts` yielded of a parameter, in its shape on every replica."""
        return part if name in self._of_muon else self._adamw.whole_of(name, part)

    def take_in(self, gradient: Direction) -> None:
        """Make a step with this gradient, which is only read, one of the typical ones."""
        factor, (matrices, others) = self.clip_factor(gradient), self._parted(gradient.tensors)
        self._samples += 1
        if self._muon is not None:
            self._muon.keep(matrices, factor)
        for name, g in others.items():
            part = self._adamw.part_of(name, g)
            self._square[name].addcmul_(part, part, value=factor**2)

    def settle(self) -> None:
        """Go on to `linear`: no step is taken in any more."""
        for name, square in self._square.items():
            self._square[name] = self._adamw.denominator(name, square.div_(self._samples))

    def linear(self, gradient: Direction) -> Direction:
        """What a small part of a step has to do with `gradient`, by the steps taken in: a tangent v, up to its length.

        <v, g'> is, but for a factor that all texts share, how much more of the way of -`gradient` a step goes with a
        little of g' in it. `settle` comes first.
        """
        # Without the learning rate, which a schedule may have brought to 0 and the scale takes off anyway.
        matrices, others = self._parted(gradient.tensors)
        adamw, square = self._adamw, self._square
        v = {name: adamw.whole_of(name, adamw.part_of(name, g) / square[name]) for name, g in others.items()}
        if self._muon is not None:
            further = self._muon_rate * self._muon.gradient_share / self._adamw.gradient_share
            v |= {name: moved.mul_(further) for name, moved in self._muon.linear(matrices).items()}
        return Direction(v, tangent=True)

    def _parted(self, tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """(those of Muon, those of AdamW)."""
        matrices = {name: tensor for name, tensor in tensors.items() if name in self._of_muon}
        return matrices, {name: tensor for name, tensor in tensors.items() if name not in self._of_muon}
