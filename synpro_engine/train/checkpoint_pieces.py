"""What of a checkpoint lies on this rank: rectangles of whole tensors, each over the memory that holds it.

Every stored tensor has the shape of the whole parameter, moments and fp32 masters too, so a checkpoint does not depend
on the layout that wrote it. A data-parallel rank owns a few rectangles of a parameter (`owned`): nothing is gathered to
save and nothing is scattered to load.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace

import torch
import torch.distributed as dist
from torch import Tensor

from synpro_engine.dist import Topology
from synpro_engine.model.model import Model
from synpro_engine.train.averages import WeightAverage
from synpro_engine.train.optimizer import begin_state, moments
from synpro_engine.train.owned import MegatronOptimizer, Shape, described, owned_rectangles

OPTIMIZER = "optimizer."
"""Begins the key of every tensor that is no weight of a model."""
_MASTER = OPTIMIZER + "param."


@dataclass(frozen=True)
class Piece:
    """A rectangle of the tensor `key`: `data` is the very memory of model or optimizer, saved from and loaded into.

    shape: of the whole tensor. offset: where the rectangle begins. saves: False on ranks that hold a copy which another
    one writes.
    """

    key: str
    data: Tensor
    shape: Shape
    offset: Shape
    saves: bool = True


def model_pieces(model: Model) -> list[Piece]:
    """This rank's weights. Copies on several ranks are all offered for saving: the writer shares them out."""
    return [
        Piece(part.key, part.data.detach(), part.global_shape, part.global_offset)
        for parts in described(model).values()
        for part in parts
    ]


def optimizer_pieces(model: Model, optimizer: MegatronOptimizer) -> list[Piece]:
    """fp32 master weights and moments of the ranges that this rank owns; moments that are not there yet begin as 0."""
    pieces: list[Piece] = []
    for rectangle in owned_rectangles(model, optimizer):
        shard = rectangle.shard
        begin_state(shard)
        for name, flat in (("param", shard.main), *((moment, shard.state[moment]) for moment in moments(shard.group))):
            key = f"{OPTIMIZER}{name}.{rectangle.key}"
            # Views, also of the moments: loading writes through them into the memory that the optimizer owns.
            pieces.append(Piece(key, rectangle.of(flat), rectangle.shape, rectangle.offset, rectangle.saves))
    return pieces


def average_pieces(model: Model, optimizer: MegatronOptimizer, averages: Mapping[str, WeightAverage]) -> list[Piece]:
    """The averages of the ranges that this rank owns, by their names; of one that holds nothing yet none."""
    taken = {name: average for name, average in averages.items() if average.taken}
    return [
        Piece(f"{OPTIMIZER}{name}.{r.key}", r.of(average.of(r.shard)), r.shape, r.offset, r.saves)
        for r in (owned_rectangles(model, optimizer) if taken else ())
        for name, average in taken.items()
    ]


def averaged(pieces: Iterable[Piece], name: str, stored: Collection[str]) -> list[Piece]:
    """The same memory, with weights and their masters to be read from the average `name` of what is `stored`, keys.

    Moments stay those of the weights.
    """
    return [replace(piece, key=precise_key(piece.key.removeprefix(_MASTER), name, stored)) for piece in pieces]


def precise_key(key: str, weights: str, stored: Collection[str]) -> str:
    """Where the fp32 numbers of a weight are `stored`: its master (`raw`), or one of the averages.

    What did not train has none of them, and is its own; so is all that is no weight.
    """
    if _MASTER + key not in stored:
        return key
    return _MASTER + key if weights == "raw" else f"{OPTIMIZER}{weights}.{key}"


def updates_made(optimizer: MegatronOptimizer, topology: Topology) -> int:
    """Updates that the optimizer has counted; a rank that owns no parameter learns it from the others. Collective."""
    made = 0
    for part in optimizer.chained_optimizers:
        counts = {int(state["step"]) for state in part.optimizer.state.values() if "step" in state}
        assert len(counts) <= 1, f"parameters of one optimizer at different steps: {sorted(counts)}"
        made = max(made, *counts, 0)
    count = torch.tensor([made], device=topology.device)  # 0 where this rank owns nothing that trains
    # With frozen blocks a pipeline stage may train nothing; its own 0 in the checkpoint would restart bias correction.
    dist.all_reduce(count, op=dist.ReduceOp.MAX)
    return int(count.item())


def set_updates_made(optimizer: MegatronOptimizer, count: int) -> None:
    """Have the optimizer go on from `count` updates."""
    for part in optimizer.chained_optimizers:
        for state in part.optimizer.state.values():
            if "step" not in state:  # Muon's, which corrects no bias
                continue
            # In place, for each parameter counts for itself. Loaded by Megatron, all would share one tensor, which each
            # of their updates then advances: the resumed run drifts without an error.
            state["step"].fill_(count)
