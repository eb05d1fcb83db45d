"""Several windows in one row, each attending to itself alone.

The models' attention is causal over whole rows. Here every window is taken out of its row into a row of its own just
before the attention kernel and put back just after it, so any kernel serves, exactly and without a mask. Rotary
positions count from the row's start; scores depend on their differences only. Knows rows and hooks, no scores.

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
    are treated as the last. Does nothing where no row holds two windows.
    """
    if not any(batch.packed for batch in batches):
        yield
        return
    turns = MicrobatchHooks(model)
    layouts = [_layout(batch, model.pad(batch.tokens_BS)) for batch in batches]
    with turns.counted() as stack:
        for index, chunk in enumerate(model.chunks):
            current = _current(turns, layouts, index)
            layers: Any = chunk.decoder.layers
            for layer in layers:
                attention = layer.self_attention.core_attention
                stack.enter_context(attention.register_forward_pre_hook(_take_apart(current)))
                stack.enter_context(attention.register_forward_hook(_put_back(current)))
        yield


class _Layout(NamedTuple):
    """Places in [S, B] and [L, W], flattened. What is behind a window's end, or belongs to no window, points anywhere:
    nobody sees or scores it."""

    from_LW: Tensor
    to_SB: Tensor


def _layout(batch: WindowBatch, tokens_BS: Tensor) -> _Layout:
    rows, positions = tokens_BS.shape
    longest = max(len(place.window.targets) for place in batch.places)
    from_LW = torch.zeros((longest, len(batch.places)), dtype=torch.int64)
    to_SB = torch.zeros((positions, rows), dtype=torch.int64)
    for w, place in enumerate(batch.places):
        steps = torch.arange(len(place.window.targets))
        from_LW[: len(steps), w] = (place.column + steps) * rows + place.row
        to_SB[place.columns, place.row] = steps * len(batch.places) + w
    return _Layout(from_LW.to(tokens_BS.device), to_SB.to(tokens_BS.device))


def _current(turns: MicrobatchHooks, layouts: Sequence[_Layout], chunk: int) -> Callable[[], _Layout]:
    return lambda: layouts[min(turns.of[chunk], len(layouts) - 1)]


def _take_apart(current: Callable[[], _Layout]) -> Callable[[Any, tuple[Any, ...]], tuple[Any, ...]]:
    def hook(_module: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
        query, key, value, *rest = args
        from_LW = current().from_LW
        return *(x.flatten(0, 1)[from_LW] for x in (query, key, value)), *rest

    return hook


def _put_back(current: Callable[[], _Layout]) -> Callable[[Any, Any, Tensor], Tensor]:
    def hook(_module: Any, _args: Any, out_LWD: Tensor) -> Tensor:
        return out_LWD.flatten(0, 1)[current().to_SB]

    return hook
