"""Influence of training's own examples, from the very passes that train on them.

During one `Engine.step` every example's share in <grad, v> is read off, grad being the gradient that the step sums: of
the training objective (its z-loss and what it drops included), before clipping. It is only read: weights, moments and
losses after the step are those of a step that nobody watched, bit for bit. `readers` has the two ways to do it (a
third, in `prefix_reader`, is for speed and does change the last bits). Where v comes from, and what is done with
scores, is the caller's.

In training's windows attention crosses from document to document. Where an example is a part of a row, its score is
that of its positions (by site, see `capture`), divided by its own labels.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from torch import Tensor

from synpro_engine.dist import sum_over
from synpro_engine.influence.directions import Direction
from synpro_engine.influence.examples import NO_EXAMPLE, Examples, ExampleScore
from synpro_engine.influence.in_run.prefix_reader import PrefixReader
from synpro_engine.influence.in_run.readers import CaptureReader, GradientReader, Reader
from synpro_engine.train.engine import Engine, LossFn
from synpro_engine.train.losses import LabelledBatch

Method = Literal["auto", "gradient", "capture", "prefix"]

_READERS: dict[str, type[Reader]] = {"gradient": GradientReader, "capture": CaptureReader, "prefix": PrefixReader}


@dataclass(kw_only=True)
class WatchedStep:
    """The loss to run a watched step with, and after it what its examples scored (those of this rank's data)."""

    loss_fn: LossFn[Any]
    scores: list[ExampleScore] = field(default_factory=list)


class InRun:
    """Watches steps of one engine along one direction or several."""

    def __init__(
        self,
        engine: Engine,
        directions: Direction | Mapping[str, Direction],
        *,
        method: Method = "auto",
    ) -> None:
        """`auto` reads weight gradients where every micro-batch is one example, and captures else.

        `prefix` costs as little as `gradient` with several rows in a micro-batch, an example each, but changes the
        order in which training sums over tokens, and so its last bits; it does not go with overlapped gradients.
        Raises ValueError for a direction along parameters that the engine does not train.
        """
        named = {"influence": directions} if isinstance(directions, Direction) else dict(directions)
        # What is frozen has no gradient in the step: its share would be missing without a word.
        untrained = {name for name, parameter in engine.model.named_parameters() if not parameter.requires_grad}
        for name, direction in named.items():
            if untrained & set(direction.tensors):
                raise ValueError(f"directions: {name} moves what is not trained, such as {min(untrained)}")
        self.names = tuple(named)
        # A bucket is reduced when all of its weights' hooks have run; a weight that is frozen in its forward runs none.
        if method == "prefix" and any(chunk.ddp_config.overlap_grad_reduce for chunk in engine.wrapped):
            raise ValueError("method: `prefix` does not go with overlapped gradients")
        self._model, self._method, self._directions = engine.model, method, list(named.values())
        self._readers: dict[str, Reader] = {}

    @contextlib.contextmanager
    def watch(
        self,
        microbatches: Sequence[LabelledBatch],
        examples: Sequence[Examples],
        loss_fn: LossFn[Any],
        *,
        denominator: float,
    ) -> Iterator[WatchedStep]:
        """Watch the one `Engine.step` within the block; the scores are there after it. Collective over the model.

        Call `Engine.step` with the yielded `loss_fn` and the same micro-batches and denominator. The loss is a sum over
        labels, by any of the output layers of `LanguageModelLoss` or another that reads through the `Model` it is
        given (RuntimeError or AssertionError where it goes past it); with capture it reads whole rows at once, and with
        prefix it must be one that may as well be computed row by row.
        Examples that make a step's gradient not finite have scores that are not finite, and the others have theirs.
        """
        assert len(microbatches) == len(examples), (len(microbatches), len(examples))
        reader = self._reader(microbatches, examples)
        with reader.attached(loss_fn) as watched:
            step = WatchedStep(loss_fn=watched)
            yield step
        model, topology = self._model, self._model.topology
        own = [replace(part, example_BS=model.own_columns(part.example_BS, NO_EXAMPLE)) for part in examples]
        sums_KN = reader.sums(own)
        # The engine differentiates objective / denominator, scores are of the objective. Collective, whatever a stage
        # holds.
        for axis in (topology.tp, topology.pp, topology.cp):
            sum_over(axis, sums_KN)
        sums_KN *= denominator
        step.scores = self._scores(microbatches, examples, sums_KN.cpu())

    def _reader(self, microbatches: Sequence[LabelledBatch], examples: Sequence[Examples]) -> Reader:
        method = self._method
        by_row = all(part.are_rows_of(batch) for part, batch in zip(examples, microbatches, strict=True))
        single = by_row and all(len(part.keys) == 1 for part in examples)
        # Fused accumulation hides weight gradients from autograd.
        fused = bool(getattr(self._model.megatron_config, "gradient_accumulation_fusion", False))
        if method == "auto":
            method = "gradient" if single and not fused else "capture"
        if method == "gradient" and (fused or not single):
            raise ValueError("method: `gradient` wants one example a micro-batch, and no fused accumulation")
        if method == "prefix" and not by_row:
            raise ValueError("method: `prefix` wants one example a row")
        if method not in self._readers:  # made when it is wanted: each holds a stack of the directions
            self._readers[method] = _READERS[method](self._model, self._directions)
        return self._readers[method]

    def _scores(
        self, microbatches: Sequence[LabelledBatch], examples: Sequence[Examples], sums_KN: Tensor
    ) -> list[ExampleScore]:
        scores, columns = [], iter(sums_KN.t().tolist())
        for part, batch in zip(examples, microbatches, strict=True):
            for key, tokens in zip(part.keys, part.labels(batch).tolist(), strict=True):
                values = [value / max(1, tokens) for value in next(columns)]
                scores.append(ExampleScore(key=key, tokens=tokens, values=dict(zip(self.names, values, strict=True))))
        return scores
