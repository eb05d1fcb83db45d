"""What of a checkpoint lies on this rank: rectangles of whole tensors, each over the memory that holds it.

Read off Megatron's descriptions of a sharded model and the ranges that its distributed optimizer owns. Every stored
tensor has the shape of the whole parameter, moments and fp32 masters too, so a checkpoint does not depend on the layout
that wrote it. A data-parallel rank owns a flat range of a parameter, which is a few rectangles of it: nothing is
gathered to save and nothing is scattered to load.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.mapping import ShardedObject, ShardedTensorFactory
from torch import Tensor
from torch.nn import Parameter

from synpro_engine.dist import Topology
from synpro_engine.model.model import Model

# Layers get keys of their own: stacked ones must all be there, and frozen layers have no optimizer state.
_METADATA = {"non_homogeneous_layers": True}
_MOMENTS = ("exp_avg", "exp_avg_sq")

MegatronOptimizer = Any  # its classes are not typed
MegatronShard = Any  # a ShardedTensor; typed, but with every field optional
Shape = tuple[int, ...]


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
        for parts in _described(model).values()
        for part in parts
    ]


def optimizer_pieces(model: Model, optimizer: MegatronOptimizer) -> list[Piece]:
    """fp32 master weights and moments of the ranges that this rank owns; moments that are not there yet begin as 0."""
    described = _described(model)
    pieces: list[Piece] = []
    for parameter, start, stop, main, state in _owned(optimizer):
        for part in described[parameter]:
            # The ranges of copies on other pipeline or tensor ranks may be cut elsewhere: one of them writes.
            saves = tuple(part.replica_id[:2]) == (0, 0)
            # A part is a view of its parameter, so the two offsets say where it begins in it;
            # SwiGLU's two halves are told apart so.
            first = part.data.storage_offset() - parameter.storage_offset()
            begin, end = max(start, first), min(stop, first + part.data.numel())
            for name, flat in (("param", main), *((moment, state[moment]) for moment in _MOMENTS)):
                for corner, extent, at in rectangles(part.local_shape, begin - first, end - first):
                    # A view, also of the moments: loading writes through it into the memory that the optimizer owns.
                    data = flat.detach().view(-1)[first + at - start :][: math.prod(extent)].view(extent)
                    offset = tuple(a + b for a, b in zip(part.global_offset, corner, strict=True))
                    pieces.append(Piece(f"optimizer.{name}.{part.key}", data, part.global_shape, offset, saves))
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
            # In place, for each parameter counts for itself. Loaded by Megatron, all would share one tensor, which each
            # of their updates then advances: the resumed run drifts without an error.
            state["step"].fill_(count)


def rectangles(shape: Shape, start: int, stop: int) -> Iterator[tuple[Shape, Shape, int]]:
    """Cut the elements `start` to `stop` of a row-major tensor into rectangles: (corner, extent, first element).

    At most two for each dimension but the last, which needs one.
    """
    if start >= stop:
        return
    if len(shape) <= 1:
        yield (start,) * len(shape), (stop - start,) * len(shape), start
        return
    row = math.prod(shape[1:])
    first, last = -(-start // row), stop // row  # the whole rows
    # The range begins and ends within one row, so there is no whole one between.
    if first > last:
        yield from _within(shape, last, start, stop)
        return
    yield from _within(shape, first - 1, start, first * row)
    if first < last:
        rest = shape[1:]
        yield (first, *(0 for _ in rest)), (last - first, *rest), first * row
    yield from _within(shape, last, last * row, stop)


def _within(shape: Shape, index: int, start: int, stop: int) -> Iterator[tuple[Shape, Shape, int]]:
    base = index * math.prod(shape[1:])
    for corner, extent, at in rectangles(shape[1:], start - base, stop - base):
        yield (index, *corner), (1, *extent), base + at


def _described(model: Model) -> dict[Parameter, list[MegatronShard]]:
    """Megatron's word on where each parameter of this rank lies in the whole model.

    A gated feed-forward layer stacks two matrices in one parameter, which are two parts here. The empty pickled objects
    that Megatron's layers add (`_extra_state`) are left out: nothing is in them, and reading them would unpickle.
    """
    parts_of: dict[Parameter, list[MegatronShard]] = {}
    for chunk in model.chunks:
        described = chunk.sharded_state_dict(metadata=dict(_METADATA))
        # Should a release put something into them, this fails rather than dropping a part of
        # the model from every checkpoint.
        extra_states = [entry.data for entry in nested_values(described) if isinstance(entry, ShardedObject)]
        assert all(data is None or (isinstance(data, Tensor) and data.numel() == 0) for data in extra_states)
        for name, parameter in chunk.named_parameters():
            entry: Any = described[name]
            parts = list(nested_values(entry.build())) if isinstance(entry, ShardedTensorFactory) else [entry]
            # Ranges are flat: a strided part would be cut at the wrong elements, and saved without an error.
            assert all(part.data.is_contiguous() and not part.prepend_axis_num for part in parts), name
            assert sum(part.data.numel() for part in parts) == parameter.numel(), name
            parts_of[parameter] = parts
    return parts_of


def _owned(optimizer: MegatronOptimizer) -> Iterator[tuple[Parameter, int, int, Tensor, dict[str, Tensor]]]:
    """(parameter, first and last + 1 of its elements that are this rank's, fp32 master of these, its Adam state)."""
    for part in optimizer.chained_optimizers:
        buckets = (bucket for buffer in part.gbuf_ranges for of_dtype in buffer.values() for bucket in of_dtype)
        for bucket in buckets:
            for parameter, ranges in bucket["param_map"].items():
                index, order = part.model_param_group_index_map[parameter]
                group = part.optimizer.param_groups[index]
                # The shard that AdamW steps on: an fp32 copy of a bf16 parameter's range, a view
                # into an fp32 parameter itself.
                main = group["params"][order]
                state = part.optimizer.state[main]
                if not state:  # as the optimizer makes it at its first update
                    # A fused step wants its count beside the parameter.
                    state["step"] = torch.zeros((), device=main.device if group["fused"] else "cpu")
                    state.update({moment: torch.zeros_like(main) for moment in _MOMENTS})
                yield parameter, ranges["param"].start, ranges["param"].end, main, state
