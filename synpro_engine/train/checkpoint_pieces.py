"""What of a checkpoint lies on this rank: rectangles of whole tensors, each over the memory that holds it.

Every stored tensor has the shape of the whole parameter, moments and fp32 masters too, so a checkpoint does not depend
on the layout that wrote it. A data-parallel rank owns a few rectangles of a parameter (`owned`): nothing is gathered to
save and nothing is scattered to load.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from synpro_engine.dist import Topology
from synpro_engine.model.model import Model
from synpro_engine.train.optimizer import begin_state, moments
from synpro_engine.train.owned import MegatronOptimizer, Shape, described, owned_rectangles


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
            key = f"optimizer.{name}.{rectangle.key}"
            # Views, also of the moments: loading writes through them into the memory that the optimizer owns.
            pieces.append(Piece(key, rectangle.of(flat), rectangle.shape, rectangle.offset, rectangle.saves))
    return pieces


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
