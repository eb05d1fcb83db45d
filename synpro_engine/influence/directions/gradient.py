"""The mean gradient of a set of micro-batches, over all ranks, as a direction.

That of reference text is the theta - theta' of a step of descent on it (see `direction`).
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from synpro_engine.config import UserError
from synpro_engine.dist import Stopped, Topology, asked_to_stop, progress, sum_over
from synpro_engine.influence.batching import forward_backward, own_gradients
from synpro_engine.influence.directions.direction import Direction
from synpro_engine.model.model import Model
from synpro_engine.model.shared_rows import documents_apart
from synpro_engine.train.losses import LabelledBatch, LanguageModelLoss, count_labels


def label_count(model: Model, batches: Sequence[LabelledBatch]) -> float:
    """Labels in these batches on all data-parallel ranks. Collective over the job."""
    topology = model.topology
    labels = torch.stack([count_labels(batch.labels_BS) for batch in batches]).sum()
    return float(sum_over(topology.dp, labels.to(topology.device)))


def mean_gradient(model: Model, batches: Sequence[LabelledBatch], *, label: str | None = None) -> Direction:
    """The gradient, in fp32, of the mean cross-entropy over all labels of `batches` on all data-parallel ranks.

    batches: this rank's micro-batches. label: shows progress under this name. As a direction it stands for a step of
    descent of rate 1. Only parameters that require gradients are in it. Collective over the job; every rank gives as
    many batches, of the same shapes, in a pipeline. Raises UserError when there is not a single label.
    """
    topology = model.topology
    # Counted before anything runs: the mean is over labels, of which each rank may hold another number.
    count = label_count(model, batches)
    # Raised on all ranks or on none, since the sum is the same.
    if count == 0:
        raise UserError("reference data: not a single token to predict")
    sums = {p: torch.zeros_like(p, dtype=torch.float32) for p in model.parameters() if p.requires_grad}
    # The fused loss would send the output weight's gradient to `main_grad` past autograd, where no hook sees it.
    loss_fn = LanguageModelLoss(output_layer="recomputed")
    # In fp32 as each passes by: left to autograd they would pile up in the model's dtype.
    handles = [parameter.register_hook(_adder(total)) for parameter, total in sums.items()]
    try:
        with own_gradients(model), advancing(len(batches), label, "micro-batch", topology) as advance:
            for run in _runs(model, batches):
                forward_backward(
                    model,
                    [batch.tokens_BS for batch in run],
                    lambda index, hidden_BSH, run=run: loss_fn(model, hidden_BSH, run[index]).objective / count,
                    [documents_apart(batch, topology.device) for batch in run],
                )
                for parameter in sums:
                    parameter.grad = None  # it was read on its way there
                advance(len(run))
    finally:
        for handle in handles:
            handle.remove()
    _sum_over_ranks(model, sums)
    return Direction({name: sums[p] for name, p in model.named_parameters() if p in sums}, tangent=True)


def mean_direction(directions: Mapping[str, Direction], weights: Mapping[str, float]) -> Direction:
    """The mean of directions over the same parameters, weighted by name; one alone is returned as it is."""
    if len(directions) == 1:
        return next(iter(directions.values()))
    whole = sum(weights[name] for name in directions)
    (first, *others), tangent = directions.items(), any(one.tangent for one in directions.values())
    mean = first[1].scaled(weights[first[0]] / whole)
    for name, one in others:
        if set(mean.tensors) != set(one.tensors):
            raise ValueError(f"directions: {name} is over other parameters")
        # In place: each further sum would be one more copy of the model.
        for key, total in mean.tensors.items():
            total.add_(one.tensors[key], alpha=weights[name] / whole)
    return replace(mean, tangent=tangent)


@contextlib.contextmanager
def advancing(count: int, label: str | None, unit: str, topology: Topology) -> Iterator[Callable[[int], Any]]:
    """Yields a function to call with the number of units just done: it moves a progress bar called `label`.

    It raises Stopped when the job is asked to stop. Without a label it does neither: the gradient then is a part of a
    training step, and that is finished first.
    """
    if label is None:
        yield lambda _: None
        return
    with progress(count, label, unit, topology) as bar:

        def advance(done: int) -> None:
            bar.update(done)
            # Collective: all ranks hear of it after the same micro-batch, and raise together.
            if asked_to_stop(topology):
                raise Stopped(f"{label}: stopped on the way; it begins anew")

        yield advance


def _adder(total: Tensor) -> Any:
    def add(gradient: Tensor) -> None:
        total.add_(gradient)

    return add


def _runs(model: Model, batches: Sequence[LabelledBatch]) -> Iterator[list[LabelledBatch]]:
    """What one schedule runs: in a pipeline, which waits to fill, all neighbours of one shape; else one micro-batch."""
    # One at a time: nothing has to be filled, and the activations of one micro-batch are all that is held.
    if model.topology.pp.size == 1:
        yield from ([batch] for batch in batches)
    else:
        for _, run in itertools.groupby(batches, key=lambda batch: tuple(batch.tokens_BS.shape)):
            yield list(run)


def _sum_over_ranks(model: Model, sums: dict[Parameter, Tensor]) -> None:
    """Make sums whole: over replicas, over parts of the sequence, and over both places of tied weights."""
    topology = model.topology
    for parameter, total in sums.items():
        # What Megatron does for a trainer's buffers as a step ends; these sums are not in them.
        sum_over(topology.replicas, total)
        # Norm weights: each rank saw its own positions, so that the ranks' gradients are parts of one sum.
        if getattr(parameter, "sequence_parallel", False):
            sum_over(topology.tp, total)
    if not model.config.tie_embeddings or topology.pp.size == 1:
        return
    table = model.output_weight() if topology.is_last_stage else model.embedding_weight()
    total = None if table is None else sums.get(table)
    if total is None:  # stages in the middle take part in the sum with zeros
        shape = (model.config.vocab_size // topology.tp.size, model.config.d_model)
        total = torch.zeros(shape, device=topology.device)
    sum_over(topology.pp, total)
