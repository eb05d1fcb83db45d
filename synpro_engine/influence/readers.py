"""Two ways to read every example's share in <grad, v> off a training step that happens anyway. Neither changes a bit.

`GradientReader`: where each micro-batch is one example, its weight gradients are formed for training; their dot product
with v is all it takes. `CaptureReader`: several examples in a micro-batch, or several in a row, position by position,
at the cost of one more product per weight and direction.

Knows gradients and hooks; examples' names and the step itself are `in_run`'s. Sums are this rank's part.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import Parameter

from synpro_engine.influence.capture import Capture, stacked
from synpro_engine.influence.direction import Direction
from synpro_engine.influence.examples import Examples
from synpro_engine.influence.output_layer import output_pass
from synpro_engine.model.model import Model
from synpro_engine.train.engine import LossFn
from synpro_kernels.linear_logprob import LogProbs

_BLOCK = 1 << 20  # entries of a gradient turned to fp32 and multiplied at once


class Reader(Protocol):
    """Reads examples off the step that runs while it is attached."""

    def __init__(self, model: Model, directions: Sequence[Direction]) -> None: ...

    def attached(self, loss_fn: LossFn[Any]) -> contextlib.AbstractContextManager[LossFn[Any]]:
        """Listen within the block; yields the loss function that the step must use."""
        ...

    def sums(self, examples: Sequence[Examples]) -> Tensor:
        """After the step: this rank's part of <gradient of each example's objective, v_k>, [K, examples]."""
        ...


class GradientReader:
    """Reads the weight gradient of each micro-batch as autograd hands it over, before it is accumulated."""

    def __init__(self, model: Model, directions: Sequence[Direction]) -> None:
        kind = torch.promote_types(model.dtype, torch.float32)
        self._model, self._many = model, len(directions)
        self._directions = {
            parameter: direction.to(kind).flatten(1)
            for parameter, direction in stacked(model, directions, matrices=kind).items()
            if _counts_here(parameter, model)
        }
        self._sums: list[Tensor] = []

    @contextlib.contextmanager
    def attached(self, loss_fn: LossFn[Any]) -> Iterator[LossFn[Any]]:
        """Listen within the block; the loss function stays as it is."""
        self._sums = []
        with contextlib.ExitStack() as stack:
            for parameter, direction in self._directions.items():
                stack.enter_context(parameter.register_hook(self._listener(parameter, direction)))
            yield loss_fn

    def _listener(self, parameter: Any, direction_KP: Tensor) -> Callable[[Tensor], None]:
        """A parameter's k-th backward pass is that of the k-th micro-batch, in every schedule."""
        turn = -1

        def listen(gradient: Tensor) -> None:
            nonlocal turn
            if getattr(parameter, "grad_added_to_main_grad", False):  # then what autograd delivers has no meaning
                raise RuntimeError("a gradient went to main_grad past autograd: the loss must not be a fused one")
            turn += 1
            if turn == len(self._sums):
                self._sums.append(torch.zeros(self._many, dtype=torch.float64, device=gradient.device))
            self._sums[turn] += dots(direction_KP, gradient.flatten())

        return listen

    def sums(self, examples: Sequence[Examples]) -> Tensor:
        """[K, examples], after the step."""
        if not self._directions:  # nothing of the directions is on this rank
            return torch.zeros((self._many, len(examples)), dtype=torch.float64, device=self._model.topology.device)
        assert len(self._sums) == len(examples), (len(self._sums), len(examples))
        return torch.stack(self._sums, 1)


def _counts_here(parameter: Parameter, model: Model) -> bool:
    """Whether this rank's gradient of it is a part of the whole, and not the copy of another tensor-parallel rank's."""
    split = getattr(parameter, "tensor_model_parallel", False) or getattr(parameter, "sequence_parallel", False)
    return split or model.topology.tp.rank == 0


def dots(direction_KP: Tensor, gradient_P: Tensor) -> Tensor:
    """<gradient, v_k>, [K]: products in fp32 (fp64), their blocks' sums in fp64."""
    total = torch.zeros(len(direction_KP), dtype=torch.float64, device=gradient_P.device)
    for start in range(0, len(gradient_P), _BLOCK):
        part = slice(start, start + _BLOCK)
        total += direction_KP[:, part] @ gradient_P[part].to(direction_KP.dtype)
    return total


class CaptureReader:
    """Reads inputs and output gradients of every layer, position by position (`capture`)."""

    def __init__(self, model: Model, directions: Sequence[Direction]) -> None:
        self._model = model
        self._capture = Capture(model, directions)
        self._watched = 0

    @contextlib.contextmanager
    def attached(self, loss_fn: LossFn[Any]) -> Iterator[LossFn[Any]]:
        """Listen within the block; use the loss function that it yields.

        The loss must read its log-probabilities from `Model.logprobs_from_hidden`, once a micro-batch.
        """
        self._watched = 0
        watched = WatchedModel(**{f.name: getattr(self._model, f.name) for f in fields(Model)}, watch=self._watch)
        with self._capture.attached(grow=False):
            yield lambda _model, hidden_BSH, batch: loss_fn(watched, hidden_BSH, batch)

    def _watch(self, hidden_BSH: Tensor, target_BS: Tensor, found: LogProbs) -> None:
        """Add the output layer's share, whatever the loss makes of log-probabilities and log-sum-exp."""
        assert target_BS.dim() == 2, "the loss must ask for log-probabilities of whole rows"
        self._watched += 1
        tp, shares = self._model.topology.tp, self._capture.of_chunk(-1)
        moved = output_pass(
            hidden_BSH.detach().flatten(0, 1),
            self._model.output_weight(),
            self._capture.output_direction(),
            target_BS.flatten(),
            vocab_start=self._model.vocab_start,
            group=tp.group if tp.size > 1 else None,
        )
        if not len(moved.mean_KT):
            return

        def add(slope_BS: Tensor, along_KT: Tensor) -> None:
            part_KBS = along_KT.unflatten(1, target_BS.shape) * slope_BS
            shares.values_KSB[:, : target_BS.size(1)] += part_KBS.mT

        found.logprob.register_hook(lambda slope_BS: add(slope_BS, moved.target_KT - moved.mean_KT))
        found.logsumexp.register_hook(lambda slope_BS: add(slope_BS, moved.mean_KT))

    def sums(self, examples: Sequence[Examples]) -> Tensor:
        """[K, examples], after the step."""
        found = self._capture.found
        assert len(found) == len(examples), (len(found), len(examples))
        assert not self._model.topology.is_last_stage or self._watched == len(examples), "log-probabilities not read"
        return torch.cat([own.sums(shares.values_KSB) for own, shares in zip(examples, found, strict=True)], 1)


@dataclass(frozen=True)
class WatchedModel(Model):
    """The same model, which tells `watch` of every log-probability that a loss reads."""

    watch: Callable[[Tensor, Tensor, LogProbs], None]

    def logprobs_from_hidden(
        self, hidden: Tensor, target: Tensor, *, temperature: float = 1.0, entropy: bool = False
    ) -> LogProbs:
        """As `Model`'s, at temperature 1 and without entropy: nothing else is scored."""
        assert temperature == 1.0 and not entropy, "only plain log-probabilities are scored"
        found = super().logprobs_from_hidden(hidden, target)
        self.watch(hidden, target, found)
        return found
