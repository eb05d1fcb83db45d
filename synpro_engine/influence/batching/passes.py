"""Passes over micro-batches in any layout, outside of training: forward for log-probs, forward and backward."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from megatron.core.pipeline_parallel import get_forward_backward_func
from torch import Tensor, nn

from synpro_engine.influence.batching.packing import separate_documents
from synpro_engine.influence.batching.windows import by_sequence, window_batches
from synpro_engine.model.model import Model, run_chunk
from synpro_engine.model.scoring import bare_schedule, score_tokens
from synpro_engine.model.shared_rows import SharedRows

_FUSION = "gradient_accumulation_fusion"

LossOf = Callable[[int, Tensor], Tensor]


def sequence_logprobs(
    model: Model, sequences: Sequence[Sequence[int]], *, start_id: int, micro_batch: int = 16, packed: bool = False
) -> list[Tensor]:
    """Log-prob of every token of every sequence: float64 [len] on the CPU each, in nats.

    A sequence longer than the model's `seq_len` is scored in consecutive windows, each with its own context.
    `packed` puts several windows into a row, for speed; scores agree up to rounding. Collective over the tensor and
    pipeline axes, which must call with the same sequences.
    """
    seq_len = model.config.seq_len
    batches = window_batches(sequences, start_id=start_id, seq_len=seq_len, micro_batch=micro_batch, packed=packed)
    logprobs = []
    for batch in batches:
        with separate_documents(model, [batch]):
            scored = score_tokens(model, batch.tokens_BS, batch.labels_BS, micro_batch=batch.tokens_BS.size(0))
        logprobs.append(scored.logprob)
    return by_sequence([len(ids) for ids in sequences], batches, logprobs)


def forward_backward(
    model: Model, tokens: Sequence[Tensor], loss_of: LossOf, rows: Sequence[SharedRows | None] = ()
) -> None:
    """Run each micro-batch of `tokens` (int64 [B, S], all of one shape) forward and backward through `model`.

    loss_of(index, hidden_BSH): the scalar to differentiate, asked on the last stage; its gradient is used as it is.
    rows: how each micro-batch's rows are to be read, where not as they are.
    Gradients end where autograd puts them; nothing is summed over ranks. An interleaved pipeline wants a multiple of
    its stages of micro-batches: fillers without a loss run behind the others. Collective over the tensor and pipeline
    axes.
    """
    topology = model.topology
    assert len({tuple(rows.shape) for rows in tokens}) == 1, "a schedule runs micro-batches of one shape"
    # Megatron's interleaved schedule refuses other numbers of micro-batches.
    fillers = -len(tokens) % topology.pp.size if topology.vpp > 1 else 0
    filled = [*tokens, *[torch.zeros_like(tokens[0])] * fillers]

    def step(batches: Iterator[tuple[int, Tensor]], chunk: Any) -> tuple[Tensor, Any]:
        index, tokens_BS = next(batches)

        def loss(hidden_BSH: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
            if index < len(tokens):
                # Without the columns that sequence parallelism padded on, for which there are no labels.
                value = loss_of(index, model.unpadded(hidden_BSH, tokens_BS.size(1)))
            else:  # a filler: its backward pass must run, since other stages wait for what it sends
                value = 0.0 * hidden_BSH.sum()
            # The middle one is Megatron's count of tokens: unused, since nothing is divided or finalised here.
            return value, torch.zeros((), dtype=torch.int), {}

        read = rows[index] if index < len(rows) else None
        return run_chunk(chunk, model.pad(tokens_BS, read), read), loss

    # On a model in training the schedule has its engine's hooks, which would reduce buffers that belong to a step.
    with bare_schedule(model.megatron_config), _undivided(model), _evaluating(model):
        get_forward_backward_func()(
            forward_step_func=step,
            # One iterator a chunk: an interleaved schedule draws every micro-batch once for each of them.
            data_iterator=[iter(list(enumerate(filled))) for _ in model.chunks],
            model=list(model.chunks),
            num_microbatches=len(filled),
            seq_length=model.pad(tokens[0]).size(1),
            micro_batch_size=tokens[0].size(0),
            forward_only=False,
        )


@contextlib.contextmanager
def frozen(model: Model) -> Iterator[None]:
    """No parameter asks for a gradient within the block: linear layers then compute none, and keep no input for one."""
    # Each parameter's own flag: a model that trains its last blocks alone has both kinds.
    before = {parameter: parameter.requires_grad for parameter in model.parameters()}
    for parameter in before:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter, flag in before.items():
            parameter.requires_grad_(flag)


@contextlib.contextmanager
def own_gradients(model: Model) -> Iterator[None]:
    """Within the block linear layers hand their weights' gradients to autograd, whoever trains the model otherwise.

    Fused accumulation, where it is installed, adds them to a trainer's buffers behind autograd's back.
    """
    # By module, not in the configuration: Megatron's layers copied the setting when they were built.
    modules: list[Any] = [m for chunk in model.chunks for m in chunk.modules() if hasattr(m, _FUSION)]
    before = [getattr(module, _FUSION) for module in modules]
    for module in modules:
        setattr(module, _FUSION, False)
    try:
        yield
    finally:
        for module, flag in zip(modules, before, strict=True):
            setattr(module, _FUSION, flag)


@contextlib.contextmanager
def _undivided(model: Model) -> Iterator[None]:
    """The schedule divides a loss by the number of micro-batches, unless told that losses are sums over tokens."""
    settings: Any = model.megatron_config
    before = settings.calculate_per_token_loss
    settings.calculate_per_token_loss = True
    try:
        yield
    finally:
        settings.calculate_per_token_loss = before


@contextlib.contextmanager
def _evaluating(model: Model) -> Iterator[None]:
    modes: list[tuple[nn.Module, bool]] = [(chunk, chunk.training) for chunk in model.chunks]
    # Megatron recomputes activations in training mode only, where hooks on layers would run twice.
    model.train(False)
    try:
        yield
    finally:
        for chunk, mode in modes:
            chunk.train(mode)
