"""The norm of each text's own gradient, for what clipping would make of a step on that text.

A micro-batch is of one text, and its weight gradients pass by one after the other: their squares are summed and the
gradients are gone. A text of more windows than a micro-batch has rows takes several in a row; their sums are held until
its last one, a copy of the weights at most.

Exact in every layout: split parameters count in parts and replicated ones once. Two kinds of gradients must be summed
before they are squared: those that sequence-parallel ranks have a part of each, and those of tied weights, which come
from both ends of a pipeline.
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
            # On one stage a tied weight is one Parameter, whose hook autograd calls once, with the sum of both uses.
            self._tied = model.output_weight() if model.topology.is_last_stage else model.embedding_weight()
        self._unfinished: dict[Parameter, Tensor] = {}
        """Sums of the text whose last micro-batch is still to come; it may come in the next pass."""
        self._unfinished_ids: list[Tensor] = []

    def _begin(self, tokens: Sequence[Tensor], ends: Sequence[bool]) -> None:
        self._ends, self._ids = ends, []  # ids that each text reads, once each
        for rows_BS, end in zip(tokens, ends, strict=True):
            self._unfinished_ids.append(rows_BS.unique())
            if end:
                self._ids.append(torch.cat(self._unfinished_ids).unique())
                self._unfinished_ids = []
        device = self._model.topology.device
        self._squares = torch.zeros(len(self._ids), dtype=torch.float64, device=device)
        self._partial: dict[Parameter, list[Tensor]] = {}  # this rank's parts of gradients, a text each
        self._tied_rows: list[Tensor] = []  # a text each

    @contextlib.contextmanager
    def attached(self, tokens: Sequence[Tensor], ends: Sequence[bool]) -> Iterator[None]:
        """Listen to the one pass within the block; frozen weights thaw for it.

        tokens: what its micro-batches read. ends: which of them end a text; the next is another's.
        """
        self._begin(tokens, ends)
        before = {parameter: parameter.requires_grad for parameter in self._model.parameters()}
        handles = []
        try:
            for parameter in before:
                parameter.requires_grad_(False)
            for parameter in self._parameters:
                parameter.requires_grad_(True)
                handles.append(parameter.register_hook(self._listener(parameter)))
            with own_gradients(self._model):
                yield
        finally:
            for handle in handles:
                handle.remove()
            for parameter, flag in before.items():
                parameter.grad = None  # it was read on its way there
                parameter.requires_grad_(flag)

    def _listener(self, parameter: Parameter) -> Callable[[Tensor], None]:
        """A parameter's k-th backward pass is that of the k-th micro-batch, in every schedule."""
        microbatch, text, topology = -1, -1, self._model.topology
        # The ranks' gradients are parts of a sum, and squares of parts do not add up to its square.
        partial = getattr(parameter, "sequence_parallel", False)
        counts = getattr(parameter, "tensor_model_parallel", False) or topology.tp.rank == 0

        def listen(gradient: Tensor) -> None:
            nonlocal microbatch, text
            microbatch += 1
            if microbatch >= len(self._ends):  # a filler of an interleaved pipeline
                return
            if not self._ends[microbatch]:
                self._add(parameter, gradient)
                return
            text += 1
            if parameter in self._unfinished:
                self._add(parameter, gradient)
                gradient = self._unfinished.pop(parameter)
            if partial:
                # Summed over the ranks in `value`, those of all texts at once.
                self._partial.setdefault(parameter, []).append(gradient.double())
            elif counts:
                self._squares[text] += _square(gradient)
            if parameter is self._tied:
                self._tied_rows.append(gradient[self._rows_read(text)].double())

        return listen

    def _add(self, parameter: Parameter, gradient: Tensor) -> None:
        if parameter in self._unfinished:
            # In fp32 at least: in bf16 the later windows of a long text would be rounded away.
            self._unfinished[parameter] += gradient
        else:
            precise = torch.promote_types(gradient.dtype, torch.float32)
            self._unfinished[parameter] = gradient.to(precise, copy=True)  # the buffer is autograd's

    def _rows_read(self, text: int) -> Tensor:
        """The rows of this rank's part of the vocabulary that a text reads: the embedding's gradient is 0 elsewhere."""
        model = self._model
        rows = model.config.vocab_size // model.topology.tp.size
        ids = self._ids[text] - model.topology.tp.rank * rows
        return ids[(ids >= 0) & (ids < rows)].to(model.topology.device)

    def value(self) -> Tensor:
        """After the pass: norms of the gradients of the texts that ended in it, fp64 [texts]. Collective over the
        model."""
        if not self._ids:  # the pass was in the midst of a text
            # On no rank then, since all run the same batches: nobody waits in the sums below.
            return self._squares
        topology = self._model.topology
        for gradients in self._partial.values():
            # Weights of norms, [texts, H] for each: one collective a parameter, not one for every text.
            whole = sum_over(topology.tp, torch.stack(gradients))
            if topology.tp.rank == 0:
                self._squares += whole.flatten(1).square().sum(1)
        squares = sum_over(topology.tp, self._squares + self._tied_product())
        # The root last: squares add up over ranks, norms do not.
        return sum_over(topology.pp, squares).sqrt()

    def _tied_product(self) -> Tensor:
        """2 <a, b>, a and b the tied weights' gradients on the two stages: |a + b|^2 less the squares counted already.

        The embedding's is 0 but in the rows that the text reads, so only these are sent.
        """
        topology = self._model.topology
        if not self._model.config.tie_embeddings or topology.pp.size == 1:
            return torch.zeros_like(self._squares)
        width = self._model.config.d_model
        counts = [len(self._rows_read(text)) for text in range(len(self._ids))]
        here = torch.cat(self._tied_rows) if self._tied_rows else self._squares.new_zeros(sum(counts), width)
        # Stages in between bring zeros: in an all-reduce every rank of the axis takes part.
        other = sum_over(topology.pp, here.clone()) - here
        products = (here * other).sum(1).split(counts)  # each of the two stages adds one <a, b>
        return torch.stack([product.sum() for product in products])


def _square(gradient: Tensor) -> Tensor:
    """Sum of squares: in the gradient's precision or fp32 along rows, fp64 over them.

    One fp32 sum over all of a large weight would lose digits.
    """
    rows = gradient if gradient.dim() == 2 else gradient[None]
    precise = torch.promote_types(gradient.dtype, torch.float32)
    return torch.linalg.vector_norm(rows, dim=1, dtype=precise).double().square().sum()
