"""Muon over Megatron's distributed optimizer: the matrices of the blocks move by their orthogonalised momentum.

Jordan et al., "Muon", 2024; at scale Liu et al., arXiv 2502.16982; rows normalised before (MuonEq-R), arXiv 2603.28254.
Momentum is kept in fp32 beside each rank's own share of the master weights, as AdamW's moments are, and a checkpoint
has it in any layout's form. Queries, keys and values, and a gated layer's two matrices, are fused in Megatron's
parameters and are taken apart here. All else that trains (embedding, output layer, norms, biases) is AdamW's.

`emerging_optimizers`, on which Megatron's own Muon stands, is not used: that one keeps whole matrices and states on
every data-parallel rank or a layer's on one, and its checkpoints are Megatron's.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from synpro_engine.model.canonical import Kind, shard, unshard
from synpro_engine.model.model import Model
from synpro_engine.train.config import MuonConfig, MuonScale
from synpro_engine.train.homes import plan_homes
from synpro_engine.train.optimizer import MATRICES, MOMENTUM, begin_state
from synpro_engine.train.owned import MegatronOptimizer, Rectangle, Shape, Shard, owned_rectangles
from synpro_kernels import orthogonalize

_EPS = 1e-7  # of a norm that is divided by


class Muon:
    """The updates of the matrices of one engine's model. Collective over the job."""

    def __init__(self, model: Model, optimizer: MegatronOptimizer) -> None:
        self._topology, self._config = model.topology, model.config
        self._dtype = model.dtype
        mine = [r for r in owned_rectangles(model, optimizer) if r.shard.group.get("muon")]
        self._rectangles: dict[str, list[Rectangle]] = {}
        for rectangle in mine:
            self._rectangles.setdefault(rectangle.key, []).append(rectangle)
        self._homes = plan_homes(mine, self._cost, model.topology)

    @torch.no_grad()
    def step(self, config: MuonConfig) -> None:
        """Update momenta and master weights from the ready gradients, which are then gone: AdamW skips these shards.

        The rate and the weight decay are those of the shards' groups.
        """
        dtype = torch.bfloat16 if config.products == "bfloat16" else self._dtype
        for keys in self._homes.rounds:
            here = {key: self._rectangles[key] for key in keys if key in self._rectangles}
            ahead = {id(own): _looked_ahead(own, config) for own in _shards(here.values())}
            pieces = {key: [r.of(ahead[id(r.shard)]) for r in owned] for key, owned in here.items()}
            made = self._homes.exchange(
                keys, pieces, lambda whole: self._orthogonalised(whole, config), dtype, self._topology
            )
            for key, updates in made.items():
                for rectangle, update in zip(here[key], updates, strict=True):
                    lr, decay = rectangle.shard.group["lr"], rectangle.shard.group["weight_decay"]
                    rectangle.of(rectangle.shard.main).mul_(1.0 - lr * decay).add_(update, alpha=-lr)

    def _orthogonalised(self, whole: dict[str, Tensor], config: MuonConfig) -> dict[str, Tensor]:
        """Each matrix by itself, those of one shape at once; scaled."""
        parts = {key: list(unshard(self._config, _kind(key), [matrix])) for key, matrix in whole.items()}
        of_shape: dict[Shape, list[tuple[str, int]]] = {}
        for key, matrices in parts.items():
            for index, matrix in enumerate(matrices):
                of_shape.setdefault(tuple(matrix.shape), []).append((key, index))
        for shape, places in of_shape.items():
            stack = torch.stack([parts[key][index] for key, index in places])
            if config.normalise_rows:
                stack = stack.float()
                stack /= stack.norm(dim=-1, keepdim=True).clamp(min=_EPS)
            dtype = whole[places[0][0]].dtype
            found = orthogonalize(
                stack, steps=config.steps, coefficients=config.coefficients, dtype=dtype, eps=_EPS
            ).mul_(update_scale(config.scale, *shape))
            for (key, index), matrix in zip(places, found, strict=True):
                parts[key][index] = matrix
        return {key: shard(self._config, _kind(key), matrices, 0, 1) for key, matrices in parts.items()}

    def _cost(self, key: str, shape: Shape) -> float:
        """Operations of a step of the iteration, of all matrices that are fused in one."""
        matrices = unshard(self._config, _kind(key), [torch.empty(shape, device="meta")])
        sides = [sorted(matrix.shape) for matrix in matrices]
        return float(sum(short * short * (3 * long + short) for short, long in sides))


def update_scale(scale: MuonScale, rows: int, columns: int) -> float:
    """What the orthogonalised momentum of a [rows, columns] matrix is multiplied by."""
    if scale == "spectral":
        return math.sqrt(max(1.0, rows / columns))
    return 0.2 * math.sqrt(max(rows, columns))


def _kind(key: str) -> Kind:
    return next(kind for name, kind in MATRICES.items() if key.endswith(name))


def _shards(rectangles: Iterable[Iterable[Rectangle]]) -> Iterable[Shard]:
    return {id(r.shard): r.shard for owned in rectangles for r in owned}.values()


def _looked_ahead(own: Shard, config: MuonConfig) -> Tensor:
    """Add the gradient to the momentum; what is orthogonalised, by Nesterov the momentum of one step later."""
    begin_state(own)
    gradient, momentum = own.main.grad, own.state[MOMENTUM]
    assert gradient is not None
    momentum.lerp_(gradient, 1.0 - config.momentum)
    own.main.grad = None
    return gradient.lerp(momentum, config.momentum) if config.nesterov else momentum
