"""Two ways to read every example's share in <grad, v> off a training step that happens anyway. Neither changes a bit.

`GradientReader`: where each micro-batch is one example, its weight gradients are formed for training; their dot product
with v is all it takes. `CaptureReader`: several examples in a micro-batch, or several in a row, position by position,
at the cost of one more product per weight and direction. Sums are this rank's part.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from synpro_engine.influence.directions import Direction
from synpro_engine.influence.examples import Examples
from synpro_engine.influence.first_order import Capture, output_pass, stacked
from synpro_engine.influence.in_run.watched_model import WatchedModel
from synpro_engine.model.model import Model
from synpro_engine.train.engine import LossFn
from synpro_engine.train.losses import LabelledBatch, LossTerms
from synpro_kernels import LogProbs, formed_dot


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
    """Reads the weight gradient of each micro-batch as autograd hands it over, before it is accumulated.

    That of the output weight may go past autograd, from a fused loss; it is then read where it is made, in
    `watched_model`.
    """

    def __init__(self, model: Model, directions: Sequence[Direction]) -> None:
        precise, tp = torch.promote_types(model.dtype, torch.float32), model.topology.tp
        self._model, self._count = model, len(directions)
        self._directions = {
            parameter: direction.to(precise)
            for parameter, direction in stacked(model, directions, matrices=precise).items()
            # Not the copy of another tensor-parallel rank's gradient, but a part of the whole.
            if tp.rank == 0
            or getattr(parameter, "tensor_model_parallel", False)
            or getattr(parameter, "sequence_parallel", False)
        }
        self._output = model.output_weight() if model.topology.is_last_stage else None
        self._sums: list[Tensor] = []
        # By micro-batch, [K] of the output weight: known in its loss's backward pass, counted when autograd has come
        # to the parameter.
        self._fused: dict[int, Tensor] = {}

    @contextlib.contextmanager
    def attached(self, loss_fn: LossFn[Any]) -> Iterator[LossFn[Any]]:
        """Listen within the block; use the loss function that it yields."""
        self._sums, self._fused = [], {}
        with contextlib.ExitStack() as stack:
            for parameter, direction in self._directions.items():
                # A tensor's hook runs ahead of its accumulator's, in which Megatron empties the gradient into its
                # buffers.
                stack.enter_context(parameter.register_hook(self._listener(parameter, direction)))
            yield self._reading(loss_fn)

    def _reading(self, loss_fn: LossFn[Any]) -> LossFn[Any]:
        """The k-th loss is that of the k-th micro-batch, in every schedule."""
        direction_KVH = None if self._output is None else self._directions.get(self._output)
        microbatches = itertools.count()

        def run(_model: Model, hidden_BSH: Tensor, batch: LabelledBatch) -> LossTerms:
            index = next(microbatches)

            def fused(loss: Tensor, slope_K: Tensor | None) -> None:
                if slope_K is None:
                    return

                def add(upstream: Tensor, slope_K: Tensor = slope_K) -> None:
                    self._fused[index] = self._fused.get(index, 0.0) + slope_K * upstream

                # The slope is that of the bare objective; autograd knows by what loss and engine multiply it.
                loss.register_hook(add)

            watched = WatchedModel.of(self._model, direction_KVH=direction_KVH, per_token=False, fused=fused)
            return loss_fn(watched, hidden_BSH, batch)

        return run

    def _listener(self, parameter: Any, direction: Tensor) -> Callable[[Tensor], None]:
        """A parameter's k-th backward pass is that of the k-th micro-batch, in every schedule."""
        microbatches = itertools.count()

        def listen(gradient: Tensor) -> None:
            index = next(microbatches)
            past_autograd = getattr(parameter, "grad_added_to_main_grad", False)
            if past_autograd:
                if parameter is not self._output or index not in self._fused:
                    raise RuntimeError("a gradient went to main_grad past autograd, and nobody read it on its way")
                self._add(index, self._fused.pop(index))
            # Past autograd, what it delivers has no meaning, but for a tied weight: that is the embedding's part.
            if not past_autograd or getattr(parameter, "zero_out_wgrad", False):
                self._add(index, formed_dot(gradient, direction))

        return listen

    def _add(self, index: int, part_K: Tensor) -> None:
        while len(self._sums) <= index:  # whichever parameter comes first in a micro-batch makes its place
            self._sums.append(torch.zeros(self._count, dtype=torch.float64, device=part_K.device))
        self._sums[index] += part_K

    def sums(self, examples: Sequence[Examples]) -> Tensor:
        """[K, examples], after the step."""
        if not self._directions:  # nothing of the directions is on this rank
            # Still a term of the sum over ranks, which waits for everyone.
            return torch.zeros((self._count, len(examples)), dtype=torch.float64, device=self._model.topology.device)
        assert len(self._sums) == len(examples), (len(self._sums), len(examples))
        return torch.stack(self._sums, 1)


class CaptureReader:
    """Reads inputs and output gradients of every layer, position by position (`capture`)."""

    def __init__(self, model: Model, directions: Sequence[Direction]) -> None:
        self._model = model
        self._capture = Capture(model, directions)
        self._losses_read = 0

    @contextlib.contextmanager
    def attached(self, loss_fn: LossFn[Any]) -> Iterator[LossFn[Any]]:
        """Listen within the block; use the loss function that it yields.

        The loss must read the output layer through the model it is given, whole rows once a micro-batch.
        """
        self._losses_read = 0
        weight = self._model.output_weight() if self._model.topology.is_last_stage else None
        watched = WatchedModel.of(
            self._model,
            direction_KVH=None if weight is None else self._capture.directions.get(weight),
            per_token=True,
            fused=self._read_fused,
            scored=self._read_logprobs,
        )
        with self._capture.attached(frozen=False):
            yield lambda _model, hidden_BSH, batch: loss_fn(watched, hidden_BSH, batch)

    def _read_fused(self, loss: Tensor, slope_KBS: Tensor | None) -> None:
        """Add the output layer's share from the slopes that the fused loss took in its own pass."""
        self._losses_read += 1
        if slope_KBS is not None:
            assert slope_KBS.dim() == 3, "the loss must ask for the cross-entropy of whole rows"
            self._on_gradient(loss, slope_KBS)

    def _read_logprobs(self, hidden_BSH: Tensor, target_BS: Tensor, results: LogProbs) -> None:
        """Add the output layer's share, whatever the loss makes of log-probabilities and log-sum-exp.

        Autograd knows what the loss makes of them; how they move along the directions takes one more pass.
        """
        assert target_BS.dim() == 2, "the loss must ask for log-probabilities of whole rows"
        self._losses_read += 1
        tp = self._model.topology.tp
        # One set of logits more, for a loss that makes them twice anyway; a fused loss tells its slopes itself.
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
        target_KBS, mean_KBS = (part.unflatten(1, target_BS.shape) for part in (moved.target_KT, moved.mean_KT))
        self._on_gradient(results.logprob, target_KBS - mean_KBS)
        # The z-loss comes in here: it is a function of the log-sum-exp alone.
        self._on_gradient(results.logsumexp, mean_KBS)

    def _on_gradient(self, result: Tensor, slope_KBS: Tensor) -> None:
        """Add the chain rule's product, d objective / d result x d result / d step along v, when the first is known."""
        # Bound in the forward: before this micro-batch's backward pass others may have begun.
        values_KSB = self._capture.shares_at(-1).values_KSB

        def add(upstream: Tensor) -> None:
            values_KSB[:, : slope_KBS.size(2)] += (slope_KBS * upstream).mT

        result.register_hook(add)

    def sums(self, examples: Sequence[Examples]) -> Tensor:
        """[K, examples], after the step."""
        shares = self._capture.shares
        assert len(shares) == len(examples), (len(shares), len(examples))
        read = not self._model.topology.is_last_stage or self._losses_read == len(examples)
        assert read, "the loss read the output layer past the model it was given"
        return torch.cat([of.sums(part.values_KSB) for of, part in zip(examples, shares, strict=True)], 1)
