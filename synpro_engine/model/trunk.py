"""Blocks that do not train, run once for all passes over the same tokens.

Shape suffixes: S positions (a rank's share of them under sequence parallelism), B rows, H hidden.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Trunk:
    """What the first `blocks` blocks made of a micro-batch: hidden_SBH, as it goes into the next one.

    It may take the place of these blocks in every model that shares their weights and the embedding's.
    """

    blocks: int
    hidden_SBH: Tensor


def frozen_blocks(chunk: Any) -> int:
    """How many blocks of a model's one chunk, from the first on, do not train, where its embedding does not either."""

    def trains(module: Any) -> bool:
        return any(parameter.requires_grad for parameter in module.parameters())

    if trains(chunk.embedding):
        return 0
    return sum(1 for _ in takewhile(lambda layer: not trains(layer), chunk.decoder.layers))


def shares_blocks(one: Any, other: Any, blocks: int) -> bool:
    """Whether two models' chunks have embedding and first `blocks` blocks in the very same memory."""

    def places(chunk: Any) -> list[int]:
        below = [chunk.embedding, *chunk.decoder.layers[:blocks]]
        return [parameter.data_ptr() for module in below for parameter in module.parameters()]

    return places(one) == places(other)


@contextmanager
def keeping_trunk(chunk: Any, blocks: int) -> Iterator[list[Trunk]]:
    """While it reads tokens without gradients, keep what its first `blocks` blocks, if any, make of each pass."""
    kept: list[Trunk] = []

    def keep(_module: Any, _inputs: Any, outputs: tuple[Tensor, Any]) -> None:
        hidden_SBH = outputs[0]
        assert not torch.is_grad_enabled() and not hidden_SBH.requires_grad
        kept.append(Trunk(blocks=blocks, hidden_SBH=hidden_SBH))

    hook = chunk.decoder.layers[blocks - 1].register_forward_hook(keep) if blocks else None
    try:
        yield kept
    finally:
        if hook is not None:
            hook.remove()


@contextmanager
def only_above(chunk: Any, trunk: Trunk) -> Iterator[None]:
    """While a chunk reads what a trunk made: it has the blocks above alone. RuntimeError for a pipeline's stage."""
    if not (chunk.pre_process and chunk.post_process):
        raise RuntimeError("a trunk stands for a model's first blocks, and this is one stage of a pipeline")
    decoder = chunk.decoder
    layers, count = decoder.layers, decoder.num_layers_per_pipeline_rank
    # The very modules: their hooks and gradients are as ever. Recomputation goes by the count.
    decoder.layers, decoder.num_layers_per_pipeline_rank = layers[trunk.blocks :], count - trunk.blocks
    try:
        yield
    finally:
        decoder.layers, decoder.num_layers_per_pipeline_rank = layers, count
