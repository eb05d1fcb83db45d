"""Muon over Megatron's distributed optimizer: the matrices of the blocks move by their orthogonalised momentum.

Jordan et al., "Muon", 2024; at scale Liu et al., arXiv 2502.16982; rows normalised before (MuonEq-R), arXiv 2603.28254.
Momentum is kept in fp32 beside each rank's own share of the master weights, as AdamW's moments are, and a checkpoint
has it in any layout's form. Queries, keys and values, and a gated layer's two matrices, are fused in Megatron's
parameters and are taken apart here. All else that trains (embedding, output layer, norms, biases) is AdamW's.

`emerging_optimizers`, on which Megatron's own Muon stands, is not used: that one keeps whole matrices and states on
every data-parallel rank or a layer's on one, and its checkpoints are Megatron's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from torch import Tensor

from synpro_engine.config import UserError
from synpro_engine.dist import on_every_rank
from synpro_engine.model.canonical import unshard
from synpro_engine.model.model import Model
from synpro_engine.train.homes import Work, plan_homes
from synpro_engine.train.muon_update import fused, kind_of, looked_ahead, orthogonalised, single_matrices
from synpro_engine.train.optimizer import MOMENTUM, begin_state, is_of_muon
from synpro_engine.train.optimizer_config import MuonConfig
from synpro_engine.train.owned import MegatronOptimizer, Rectangle, Shape, Shard, owned_rectangles


class Muon:
    """The updates of the matrices of one engine's model. Collective over the job."""

    def __init__(self, model: Model, optimizer: MegatronOptimizer) -> None:
        """UserError, on every rank, where there is none for it to move, or where groups are not as names say."""
        self._topology, self._config = model.topology, model.config
        self._dtype = model.dtype
        named = model.named_parameters()
        self.names = frozenset(name for name, p in named if p.requires_grad and is_of_muon(name))
        """Of the parameters that it moves, as this rank's model has them."""
        owned = list(owned_rectangles(model, optimizer))
        mine = [r for r in owned if r.shard.group.get("muon")]
        on_every_rank(model.topology, lambda: _check_groups(model, owned, self.names))
        self._rectangles: dict[str, list[Rectangle]] = {}
        for rectangle in mine:
            self._rectangles.setdefault(rectangle.key, []).append(rectangle)
        self._homes = plan_homes(mine, self._cost, model.topology)
        if not self._homes.home:  # of the whole job: the same on every rank
            raise UserError(
                "`optimizer.name`: muon moves matrices of blocks, and none of them trains here (adapters would be "
                "AdamW's, as all else)"
            )

    @torch.no_grad()
    def step(self, config: MuonConfig) -> None:
        """Update momenta and master weights from the ready gradients, which are then gone: AdamW skips these shards.

        The rate and the weight decay are those of the shards' groups.
        """
        made = self.on_whole(
            lambda own: _moved_on(own, config), lambda whole: self.updates(whole, config), self.products(config)
        )
        for rectangle, update in made:
            lr, decay = rectangle.shard.group["lr"], rectangle.shard.group["weight_decay"]
            rectangle.of(rectangle.shard.main).mul_(1.0 - lr * decay).add_(update, alpha=-lr)

    def updates(self, whole: dict[str, Tensor], config: MuonConfig) -> dict[str, Tensor]:
        """Of whole momenta, looked ahead, by key: what each moves by at a rate of 1. Not collective."""
        dtype = self.products(config)
        made = {
            place: update
            for places, stack in single_matrices(self._config, whole)
            for place, update in zip(places, orthogonalised(stack, config, dtype), strict=True)
        }
        return fused(self._config, made)

    def products(self, config: MuonConfig) -> torch.dtype:
        """What iterations multiply and ranks send each other."""
        return torch.bfloat16 if config.products == "bfloat16" else self._dtype

    def on_whole(
        self, of: Callable[[Shard], Tensor], work: Work, dtype: torch.dtype
    ) -> Iterator[tuple[Rectangle, Tensor]]:
        """This rank's rectangles, each with its part of what `work` makes of whole matrices on some rank.

        of: what a shard gives to them, as long as the shard. work: given some of the matrices by key, in `dtype`; it
        may be called several times, a matrix always on the same rank. Collective over the job: every rank goes through
        all of it.
        """
        for keys, whole in self.wholes(of, dtype):
            for key, made in self._homes.hand_back(keys, work(whole), dtype, self._topology).items():
                yield from zip(self._rectangles[key], made, strict=True)

    def wholes(
        self, of: Callable[[Shard], Tensor], dtype: torch.dtype
    ) -> Iterator[tuple[Sequence[str], dict[str, Tensor]]]:
        """The way there of `on_whole` alone, round by round: (the round's keys, the whole matrices of this rank)."""
        for keys in self._homes.rounds:
            here = {key: self._rectangles[key] for key in keys if key in self._rectangles}
            given = {id(own): of(own) for own in _shards(here.values())}
            pieces = {key: [r.of(given[id(r.shard)]) for r in owned] for key, owned in here.items()}
            yield keys, self._homes.bring(keys, pieces, dtype, self._topology)

    def _cost(self, key: str, shape: Shape) -> float:
        """Operations of a step of the iteration, of all matrices that are fused in one."""
        matrices = unshard(self._config, kind_of(key), [torch.empty(shape, device="meta")])
        sides = [sorted(matrix.shape) for matrix in matrices]
        return float(sum(short * short * (3 * long + short) for short, long in sides))


def _check_groups(model: Model, owned: Iterable[Rectangle], names: frozenset[str]) -> None:
    """Megatron matched the groups by patterns of its own: what is of one and not of the other nobody would move."""
    of_groups = {id(r.shard.parameter): bool(r.shard.group.get("muon")) for r in owned}
    for name, p in model.named_parameters():
        if of_groups.get(id(p), name in names) != (name in names):
            whose = "Muon" if name in names else "AdamW"
            raise UserError(f"`optimizer.name`: {name} is {whose}'s by its name, and in the group of the other")


def _shards(rectangles: Iterable[Iterable[Rectangle]]) -> Iterable[Shard]:
    return {id(r.shard): r.shard for owned in rectangles for r in owned}.values()


def _moved_on(own: Shard, config: MuonConfig) -> Tensor:
    """Add the gradient, which is then gone, to the momentum; what is orthogonalised."""
    begin_state(own)
    gradient, momentum = own.main.grad, own.state[MOMENTUM]
    assert gradient is not None
    momentum.lerp_(gradient, 1.0 - config.momentum)
    own.main.grad = None
    return looked_ahead(gradient, momentum, config)
