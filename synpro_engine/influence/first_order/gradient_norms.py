"""The norm of each text's own gradient, for what clipping would make of a step on that text.

A micro-batch is of one text, and its weight gradients pass by one after the other: their squares are summed and nothing
is kept. A text of more windows than a micro-batch has rows takes several in a row; what they sum to is kept until its
last one, a copy of the weights at most. Knows parameters and hooks; does not know what is differentiated.

Exact in every layout: split parameters in parts, replicated ones once, those whose gradients are spread over
sequence-parallel ranks after their sum, and tied weights, which get gradients from both ends of a pipeline, as one.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import Parameter

from synpro_engine.dist import sum_over
from synpro_engine.influence.batching import own_gradients
from synpro_engine.model.model import Model


class GradientNorms:
    """Norms over given parameters, text by text, each of one micro-batch or more, within a pass or over several."""

    def __init__(self, model: Model, parameters: Sequence[Parameter]) -> None:
        """parameters: those that count, this rank's; the others get no gradient while this listens."""
        self._model, self._parameters = model, list(parameters)
        self._tied: Parameter | None = None
        if model.config.tie_embeddings and model.topology.pp.size > 1:
            self._tied = model.output_weight() if model.topology.is_last_stage else model.embedding_weight()
        self._begun: dict[Parameter, Tensor] = {}
        """Sums of the text whose last micro-batch is still to come."""
        self._begun_reads: list[Tensor] = []

    def _begin(self, tokens: Sequence[Tensor], ends: Sequence[bool]) -> None:
        self._ends, self._reads = ends, []
        for rows_BS, end in zip(tokens, ends, strict=True):
            self._begun_reads.append(rows_BS.unique())
            if end:
                self._reads.append(torch.cat(self._begun_reads).unique())
                self._begun_reads = []
        device = self._model.topology.device
        self._squares = torch.zeros(len(self._reads), dtype=torch.float64, device=device)
        self._spread: dict[Parameter, list[Tensor]] = {}
        self._rows: list[Tensor] = []

    @contextlib.contextmanager
    def attached(self, tokens: Sequence[Tensor], ends: Sequence[bool]) -> Iterator[None]:
        """Listen to the one pass within the block; frozen weights thaw for it.

        tokens: what its micro-batches read. ends: which of them end a text; the next is another's.
        """
        self._begin(tokens, ends)
        asked = {parameter: parameter.requires_grad for parameter in self._model.parameters()}
        handles = []
        try:
            for parameter in asked:
                parameter.requires_grad_(False)
            for parameter in self._parameters:
                parameter.requires_grad_(True)
                handles.append(parameter.register_hook(self._listener(parameter)))
            with own_gradients(self._model):
                yield
        finally:
            for handle in handles:
                handle.remove()
            for parameter, flag in asked.items():
                parameter.grad = None  # it was read on its way there
                parameter.requires_grad_(flag)

    def _listener(self, parameter: Parameter) -> Callable[[Tensor], None]:
        """A parameter's k-th backward pass is that of the k-th micro-batch, in every schedule."""
        turn, text, topology = -1, -1, self._model.topology
        spread = getattr(parameter, "sequence_parallel", False)
        counts = getattr(parameter, "tensor_model_parallel", False) or topology.tp.rank == 0

        def listen(gradient: Tensor) -> None:
            nonlocal turn, text
            turn += 1
            if turn >= len(self._ends):  # a filler of an interleaved pipeline
                return
            if not self._ends[turn]:
                self._add(parameter, gradient)
                return
            text += 1
            if parameter in self._begun:
                self._add(parameter, gradient)
                gradient = self._begun.pop(parameter)
            if spread:
                self._spread.setdefault(parameter, []).append(gradient.double())
            elif counts:
                self._squares[text] += _square(gradient)
            if parameter is self._tied:
                self._rows.append(gradient[self._own_rows(text)].double())

        return listen

    def _add(self, parameter: Parameter, gradient: Tensor) -> None:
        if parameter in self._begun:
            self._begun[parameter] += gradient
        else:
            kind = torch.promote_types(gradient.dtype, torch.float32)
            self._begun[parameter] = gradient.to(kind, copy=True)

    def _own_rows(self, text: int) -> Tensor:
        """The rows of this rank's part of the vocabulary that a text reads: the embedding's gradient is 0 elsewhere."""
        model = self._model
        rows = model.config.vocab_size // model.topology.tp.size
        ids = self._reads[text] - model.topology.tp.rank * rows
        return ids[(ids >= 0) & (ids < rows)].to(model.topology.device)

    def value(self) -> Tensor:
        """After the pass: norms of the gradients of the texts that ended in it, fp64 [texts]. Collective over the
        model."""
        if not self._reads:
            return self._squares
        topology = self._model.topology
        for gradients in self._spread.values():
            whole = sum_over(topology.tp, torch.stack(gradients))
            if topology.tp.rank == 0:
                self._squares += whole.flatten(1).square().sum(1)
        squares = sum_over(topology.tp, self._squares + self._tied_product())
        return sum_over(topology.pp, squares).sqrt()

    def _tied_product(self) -> Tensor:
        """What a sum's square has over the squares of its parts, 2 <a, b>, a and b the tied weights' two gradients."""
        topology = self._model.topology
        if not self._model.config.tie_embeddings or topology.pp.size == 1:
            return torch.zeros_like(self._squares)
        width = self._model.config.d_model
        counts = [len(self._own_rows(text)) for text in range(len(self._reads))]
        own = torch.cat(self._rows) if self._rows else self._squares.new_zeros(sum(counts), width)
        other = sum_over(topology.pp, own.clone()) - own
        products = (own * other).sum(1).split(counts)  # each of the two stages adds one <a, b>
        return torch.stack([product.sum() for product in products])


def _square(gradient: Tensor) -> Tensor:
    """Sum of squares: in the gradient's precision or fp32 along rows, fp64 over them."""
    rows = gradient if gradient.dim() == 2 else gradient[None]
    kind = torch.promote_types(gradient.dtype, torch.float32)
    return torch.linalg.vector_norm(rows, dim=1, dtype=kind).double().square().sum()
