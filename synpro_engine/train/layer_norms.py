"""Norms of the gradient by layer: where in the model a step went wrong."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist

from synpro_engine.train.engine import Engine
from synpro_engine.train.owned import described, owned_shards

EMBEDDING, OUTPUT = "embedding", "output"
"""Beside `layer 0` and on: the token embedding, and what stands behind the last layer (its norm, an untied head)."""


def gradient_norms(engine: Engine, grad_norm: float) -> dict[str, float]:
    """Norms of the gradient of the step that was last made, by layer, before clipping. Collective.

    grad_norm: of the whole, as that step told it. Layers that do not train are left out. Each rank reads the gradients
    that its optimizer owns, so every element is counted once: 4 bytes a parameter over the data-parallel ranks, and one
    sum of a number a layer over all ranks.
    """
    model = engine.model
    names = [EMBEDDING, *(f"layer {index}" for index in range(model.config.layers)), OUTPUT]
    place = {name: index for index, name in enumerate(names)}
    device = model.topology.device
    squares, trains = torch.zeros(2, len(names), dtype=torch.float64, device=device)
    parts_of = described(model)
    for shard in owned_shards(engine.optimizer):
        [first, *_] = parts_of[shard.parameter]
        # A copy on another tensor or pipeline rank is the same gradient once more.
        if tuple(first.replica_id[:2]) != (0, 0):
            continue
        gradient = _main_grad(shard.parameter).view(-1)[shard.start : shard.stop]
        index = place[_layer_of(first.key)]
        squares[index] += torch.linalg.vector_norm(gradient, dtype=torch.float64).square()
        trains[index] = 1
    sums = torch.stack((squares, trains))
    if model.topology.world_size > 1:
        dist.all_reduce(sums)
    squares, trains = sums.tolist()
    # The update clips gradients in place where weights are fp32, all by one factor.
    total = math.sqrt(sum(squares))
    factor = grad_norm / total if math.isfinite(grad_norm) and 0 < total < math.inf else 1.0
    found = zip(names, squares, trains, strict=True)
    return {name: factor * math.sqrt(square) for name, square, trained in found if trained}


def told(norms: Mapping[str, float]) -> str:
    """What stands out: the layers whose gradient is not finite, or else the one with most of it."""
    broken = [name for name, norm in norms.items() if not math.isfinite(norm)]
    if broken:
        shown = ", ".join(broken[:3]) + (f" and {len(broken) - 3} more" if len(broken) > 3 else "")
        return f"its gradient is not finite in {shown}"
    squares = {name: norm**2 for name, norm in norms.items()}
    largest = max(squares, key=lambda name: squares[name])
    return f"{squares[largest] / max(sum(squares.values()), 1e-300):.0%} of its squared gradient is in {largest}"


def _main_grad(parameter: Any) -> torch.Tensor:
    return parameter.main_grad


def _layer_of(key: str) -> str:
    """A key of the whole model, such as `decoder.layers.3.mlp.linear_fc1.weight`, to the name of its layer."""
    found = re.search(r"\.layers\.(\d+)\.", key)
    if found:
        return f"layer {found[1]}"
    return EMBEDDING if "embedding" in key else OUTPUT
