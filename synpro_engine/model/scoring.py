"""Scoring given tokens: log-probabilities without gradients, right in every layout.

A batch is cut into micro-batches, which run forward through the pipeline where there is one.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist
import torch.nn.functional as F
from megatron.core.pipeline_parallel import get_forward_backward_func
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

from synpro_engine.data import IGNORE
from synpro_engine.model.model import Model, run_chunk
from synpro_engine.model.shared_rows import SharedRows
from synpro_kernels import LogProbs

T = TypeVar("T")


@torch.no_grad()
def score_tokens(
    model: Model,
    tokens_BS: Tensor,
    labels_BS: Tensor,
    *,
    temperature: float = 1.0,
    micro_batch: int = 8,
    entropy: bool = False,
    rows: SharedRows | None = None,
) -> LogProbs:
    """Log-probability of each label given the tokens up to its position, fp32 [B, S] on this rank's device.

    tokens_BS, labels_BS: int64, sequences from position 0, padded on the right with anything; labels are
    already shifted (labels_BS[:, i] is predicted from tokens_BS[:, :i + 1]), -100 is ignored and gives 0.
    A sequence's scores do not depend on its batch mates or its padding. Every rank of a model replica, and those that
    share its sequences, must call with the same arguments and gets the result; data-parallel ranks score their own.
    `micro_batch` sequences run at once. rows: what sees what, where that is not all before it.
    """
    assert tokens_BS.shape == labels_BS.shape and tokens_BS.dim() == 2
    labels_BS = labels_BS.to(model.topology.device)
    # What lies behind the last label of all rows, padding as a rule, is never run.
    used = int((labels_BS != IGNORE).any(0).nonzero().max()) + 1 if bool((labels_BS != IGNORE).any()) else 0
    scores_CBS = _score_columns(
        model, tokens_BS[:, :used], labels_BS[:, :used], temperature, micro_batch, entropy, rows
    )
    logprob, logsumexp, *rest = F.pad(scores_CBS, (0, labels_BS.size(1) - used)).unbind(0)
    return LogProbs(logprob, logsumexp, rest[0] if entropy else None)


def _score_columns(
    model: Model,
    tokens_BS: Tensor,
    labels_BS: Tensor,
    temperature: float,
    micro_batch: int,
    entropy: bool,
    rows: SharedRows | None,
) -> Tensor:
    """Log-probability, log-sum-exp (and entropy) [2 or 3, B, S] of the columns that hold labels.

    Causal attention makes what lies right of them irrelevant.
    """
    if labels_BS.numel() == 0:
        return torch.zeros((3 if entropy else 2, *labels_BS.shape), device=model.topology.device)
    micro_batch = min(micro_batch, tokens_BS.size(0))
    training = [chunk.training for chunk in model.chunks]
    # Recomputation reads the flag and would keep inputs for a backward pass that never comes.
    model.train(False)
    try:
        if model.topology.pp.size > 1:
            parts = _run_pipeline(model, tokens_BS, labels_BS, temperature, micro_batch, entropy, rows)
        else:
            batches = zip(tokens_BS.split(micro_batch), labels_BS.split(micro_batch), strict=True)
            parts = [
                model.logprobs_from_hidden(
                    model.hidden(tokens, _part(rows, number, micro_batch, tokens)), model.own_columns(labels),
                    temperature=temperature, entropy=entropy,
                )
                for number, (tokens, labels) in enumerate(batches)
            ]  # fmt: skip
    finally:
        for chunk, mode in zip(model.chunks, training, strict=True):
            chunk.train(mode)
    return _collect(model, parts, labels_BS, entropy)


def _part(rows: SharedRows | None, number: int, micro_batch: int, tokens_BS: Tensor) -> SharedRows | None:
    """What concerns the micro-batch of this number."""
    first = number * micro_batch
    return None if rows is None else rows.cut(slice(first, first + len(tokens_BS)), tokens_BS.size(1))


def _run_pipeline(
    model: Model,
    tokens_BS: Tensor,
    labels_BS: Tensor,
    temperature: float,
    micro_batch: int,
    entropy: bool,
    shared: SharedRows | None,
) -> list[LogProbs]:
    """The last stage returns the parts, the others an empty list; rows of padding fill the micro-batches up."""
    topology = model.topology
    multiple = micro_batch * (topology.pp.size if topology.vpp > 1 else 1)
    # Rows of zeros are run and thrown away; a pipeline's buffers have one shape for the whole schedule.
    tokens_BS = F.pad(model.pad(tokens_BS), (0, 0, 0, -tokens_BS.size(0) % multiple))
    if shared is not None:
        shared = shared.cut(slice(None), labels_BS.size(1)).with_rows(tokens_BS.size(0))
    labels = F.pad(labels_BS, (0, 0, 0, tokens_BS.size(0) - labels_BS.size(0)), value=IGNORE).split(micro_batch)
    parts = tokens_BS.split(micro_batch)
    passes = [(tokens, _part(shared, number, micro_batch, tokens)) for number, tokens in enumerate(parts)]

    def score(number: int, hidden: Tensor) -> LogProbs:
        # Without the columns of padding, which labels do not have.
        hidden, own = model.unpadded(hidden, labels_BS.size(1)), model.own_columns(labels[number])
        return model.logprobs_from_hidden(hidden, own, temperature=temperature, entropy=entropy)

    return read_in_pipeline(model, passes, score)


def read_in_pipeline(
    model: Model, passes: Sequence[tuple[Tensor, SharedRows | None]], made: Callable[[int, Tensor], T]
) -> list[T]:
    """Megatron's forward-only schedule over padded micro-batches of one shape, each with how its rows are read.

    made(number, hidden_BSH): asked of each micro-batch on the last stage, which returns what it returned; the other
    stages return an empty list. An interleaved schedule wants a multiple of its stages of micro-batches. Collective
    over a model replica.
    """

    def step(batches: Iterator[tuple[int, tuple[Tensor, SharedRows | None]]], chunk: Any) -> tuple[Tensor, Any]:
        number, (tokens, rows) = next(batches)
        return run_chunk(chunk, tokens, rows), lambda hidden, non_loss_data=True: made(number, hidden)

    first, _ = passes[0]
    with bare_schedule(model.megatron_config):
        return get_forward_backward_func()(
            forward_step_func=step,
            # One for each chunk: an interleaved schedule takes every micro-batch from each of them.
            data_iterator=[iter(list(enumerate(passes))) for _ in model.chunks],
            model=list(model.chunks),
            num_microbatches=len(passes),
            seq_length=first.size(1),
            micro_batch_size=first.size(0),
            forward_only=True,
            # So that the schedule keeps what `made` returns as it is, without taking it for a loss to divide.
            collect_non_loss_data=True,
        )


def _collect(model: Model, parts: list[LogProbs], labels_BS: Tensor, entropy: bool) -> Tensor:
    """Join microbatches, drop rows of padding and give the last stage's result to every stage."""
    topology, names = model.topology, ("logprob", "logsumexp", "entropy")[: 3 if entropy else 2]
    if topology.is_last_stage:
        joined = [torch.cat([getattr(part, name) for part in parts])[: labels_BS.size(0)] for name in names]
        # One tensor, so that one broadcast serves all that the other stages are to learn.
        result = model.share.gathered(torch.stack(joined).float(), 2)[..., : labels_BS.size(1)].contiguous()
    else:
        result = torch.empty((len(names), *labels_BS.shape), device=topology.device)
    if topology.pp.size > 1:
        dist.broadcast(result, group=topology.pp.group, group_src=topology.pp.size - 1)
    return result


@contextlib.contextmanager
def bare_schedule(settings: TransformerConfig) -> Iterator[None]:
    """Take a trainer's hooks (gradient and parameter synchronisation) off the schedule for a while."""
    # Passes outside of training must neither start reductions of a trainer's buffers nor wait for any.
    hooks = ("no_sync_func", "grad_sync_func", "param_sync_func", "finalize_model_grads_func", "grad_scale_func")
    saved = {name: getattr(settings, name) for name in hooks}
    for name in hooks:
        setattr(settings, name, None)
    try:
        yield
    finally:
        for name, value in saved.items():
            setattr(settings, name, value)
