"""Several windows in one row, each attending to itself alone.

The models' attention is causal over whole rows. Here every window is taken out of its row into a row of its own just
before the attention kernel and put back just after it, so any kernel serves, exactly and without a mask. Rotary
positions still count from the row's start, which changes no score: attention sees the differences of positions only.

Shape suffixes: B rows, S positions, W windows, L the longest window.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from synpro_engine.influence.batching.microbatch_hooks import MicrobatchHooks
from synpro_engine.influence.batching.windows import WindowBatch
from synpro_engine.model.model import Model


@contextlib.contextmanager
def separate_documents(model: Model, batches: Sequence[WindowBatch]) -> Iterator[None]:
    """Keep the windows of packed rows apart in the forwards (and their backwards) within the block.

    batches: the micro-batches that the block's one pass runs, in order; forwards beyond them (fillers of a pipeline)
    are treated as the last. Does nothing where no row holds two windows. ValueError for a model whose ranks share
    sequences: windows are scored where they are whole.
    """
    if model.topology.cp.size > 1:
        layout = model.topology.layout
        raise ValueError(f"model: sequences are scored whole on each rank, and this layout shares them out: {layout}")
    if not any(batch.packed for batch in batches):
        yield
        return
    hooks = MicrobatchHooks(model)
    # As the model pads: under sequence parallelism rows are longer than the batch, and attention sees all of them.
    rearrangements = [_rearrangement(batch, model.pad(batch.tokens_BS)) for batch in batches]
    with hooks.counted() as stack:
        for number, chunk in enumerate(model.chunks):
            take_apart, put_back = _around_attention(hooks, rearrangements, number)
            layers: Any = chunk.decoder.layers
            for layer in layers:
                attention = layer.self_attention.core_attention
                stack.enter_context(attention.register_forward_pre_hook(take_apart))
                stack.enter_context(attention.register_forward_hook(put_back))
        yield


class _Rearrangement(NamedTuple):
    """Where each entry comes from: of [L, W] in a flattened [S, B], and of [S, B] in a flattened [L, W].

    What is behind a window's end, or belongs to no window, comes from entry 0: no earlier position attends to it, and
    it has no label.
    """

    from_LW: Tensor
    to_SB: Tensor


def _rearrangement(batch: WindowBatch, tokens_BS: Tensor) -> _Rearrangement:
    rows, positions = tokens_BS.shape
    longest = max(len(place.window.targets) for place in batch.places)
    from_LW = torch.zeros((longest, len(batch.places)), dtype=torch.int64)
    to_SB = torch.zeros((positions, rows), dtype=torch.int64)
    for number, place in enumerate(batch.places):
        step_L = torch.arange(len(place.window.targets))
        from_LW[: len(step_L), number] = (place.column + step_L) * rows + place.row
        to_SB[place.columns, place.row] = step_L * len(batch.places) + number
    return _Rearrangement(from_LW.to(tokens_BS.device), to_SB.to(tokens_BS.device))


def _around_attention(
    hooks: MicrobatchHooks, rearrangements: Sequence[_Rearrangement], chunk: int
) -> tuple[Callable[..., tuple[Any, ...]], Callable[..., Tensor]]:
    """The hooks before and after the attention kernels of one chunk, which bind its number."""

    def current() -> _Rearrangement:
        return rearrangements[min(hooks.index[chunk], len(rearrangements) - 1)]

    def take_apart(_module: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
        query, key, value, *rest = args
        from_LW = current().from_LW
        # A gather is differentiable, so backward passes keep windows apart by themselves.
        return *(x.flatten(0, 1)[from_LW] for x in (query, key, value)), *rest

    def put_back(_module: Any, _args: Any, out_LWD: Tensor) -> Tensor:
        return out_LWD.flatten(0, 1)[current().to_SB]

    return take_apart, put_back
