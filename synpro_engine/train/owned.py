"""Which ranges of which parameters this rank's optimizer owns, and where they lie in the whole matrices.

Read off Megatron's descriptions of a sharded model and the ranges of its distributed optimizer, which cuts a buffer of
all parameters over data-parallel ranks: a rank owns a flat range of a parameter, which is a few rectangles of it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.mapping import ShardedObject, ShardedTensorFactory
from torch import Tensor
from torch.nn import Parameter

from synpro_engine.config import UserError
from synpro_engine.dist import on_every_rank, sum_over
from synpro_engine.model.model import Model

# Layers get keys of their own: stacked ones must all be there, and frozen layers have no optimizer state.
_METADATA = {"non_homogeneous_layers": True}

MegatronOptimizer = Any  # its classes are not typed
MegatronShard = Any  # a ShardedTensor; typed, but with every field optional
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Shard:
    """What this rank's optimizer holds of one parameter: its elements `start` to `stop`.

    main: fp32, [stop - start], an own copy or a view into an fp32 parameter. state: the optimizer's, by name; empty
    before the first step. group: the parameter group with its settings.
    """

    parameter: Parameter
    start: int
    stop: int
    main: Tensor
    state: dict[str, Any]
    group: dict[str, Any]


@dataclass(frozen=True)
class Rectangle:
    """A part of the whole tensor `key`, whose entries are a run of the flat tensors of `shard`.

    shape: of the whole tensor. offset, extent: of the rectangle in it. first: where the run begins. saves: False on
    ranks that hold a copy of which another one takes care.
    """

    shard: Shard
    key: str
    shape: Shape
    offset: Shape
    extent: Shape
    first: int
    saves: bool

    def of(self, flat: Tensor) -> Tensor:
        """The rectangle of a tensor as long as the shard: a view, so that what is written there reaches it."""
        return flat.detach().view(-1)[self.first :][: math.prod(self.extent)].view(self.extent)


def owned_shards(optimizer: MegatronOptimizer) -> Iterator[Shard]:
    """This rank's shards of all parameters that train, in the order of the optimizer's buffers."""
    for part in optimizer.chained_optimizers:
        buckets = (bucket for buffer in part.gbuf_ranges for of_dtype in buffer.values() for bucket in of_dtype)
        for bucket in buckets:
            for parameter, ranges in bucket["param_map"].items():
                index, order = part.model_param_group_index_map[parameter]
                group = part.optimizer.param_groups[index]
                # What the optimizer steps on: an fp32 copy of a bf16 parameter's range, a view into an fp32 parameter.
                main = group["params"][order]
                held = ranges["param"]
                yield Shard(parameter, held.start, held.end, main, part.optimizer.state[main], group)


def check_owned_once(model: Model, optimizer: MegatronOptimizer) -> None:
    """Raise UserError, on every rank, unless each entry of what trains is one rank's, in one group. Collective."""
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    entries = dict.fromkeys((p for _, p in trained), 0)
    for shard in owned_shards(optimizer):
        entries[shard.parameter] += shard.stop - shard.start
    counts = torch.tensor(list(entries.values()), dtype=torch.int64, device=model.topology.device)
    found = sum_over(model.topology.replicas, counts).tolist()

    def check() -> None:
        for (name, parameter), count in zip(trained, found, strict=True):
            if count != parameter.numel():  # no update, or two of them, and no error
                raise UserError(f"`optimizer`: holds {count} of {parameter.numel()} entries of {name}, which trains")

    on_every_rank(model.topology, check)


def owned_rectangles(model: Model, optimizer: MegatronOptimizer) -> Iterator[Rectangle]:
    """The shards as parts of whole tensors, which are those of the model on all ranks."""
    parts_of = described(model)
    for shard in owned_shards(optimizer):
        for part in parts_of[shard.parameter]:
            # The ranges of copies on other pipeline or tensor ranks may be cut elsewhere: one of them writes.
            saves = tuple(part.replica_id[:2]) == (0, 0)
            # A part is a view of its parameter, so the two offsets say where it begins in it;
            # SwiGLU's two halves are told apart so.
            first = part.data.storage_offset() - shard.parameter.storage_offset()
            begin, end = max(shard.start, first), min(shard.stop, first + part.data.numel())
            for corner, extent, at in rectangles(part.local_shape, begin - first, end - first):
                offset = tuple(a + b for a, b in zip(part.global_offset, corner, strict=True))
                place = first + at - shard.start
                yield Rectangle(shard, part.key, part.global_shape, offset, extent, place, saves)


def described(model: Model) -> dict[Parameter, list[MegatronShard]]:
    """Megatron's word on where each parameter of this rank lies in the whole model.

    A gated feed-forward layer stacks two matrices in one parameter, which are two parts here. The empty pickled objects
    that Megatron's layers add (`_extra_state`) are left out: nothing is in them, and reading them would unpickle.
    """
    model.arrive()
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
