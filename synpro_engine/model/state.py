"""A model's state as full canonical tensors, in and out, whatever the layout; and its initial values.

This module moves tensors between ranks; how they are named and cut is in `canonical`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import Parameter

from synpro_engine.config import UserError
from synpro_engine.dist import Axis, gather_objects
from synpro_engine.model import canonical
from synpro_engine.model.canonical import Slot
from synpro_engine.model.model import Model

_ROWS_CHECKED = 4096  # at a time: the check for finite numbers needs a byte for each


def local_slots(model: Model) -> list[Slot]:
    """What this rank's parameters hold. A tied output layer on another stage is a second slot of the embedding."""
    slots = [slot for block in model.blocks() for slot in canonical.block_slots(model.config, block)]
    embedding, norm = model.embedding_weight(), model.final_norm_weight()
    if embedding is not None:
        slots.append(Slot((canonical.EMBEDDING,), embedding, "rows"))
    if norm is not None:
        slots.append(Slot((canonical.FINAL_NORM,), norm, "whole"))
    head = model.output_weight() if model.topology.is_last_stage else None
    # On one stage a tied head is the same Parameter, and a second slot would copy it twice.
    if head is not None and head is not embedding:
        slots.append(Slot((canonical.EMBEDDING if model.config.tie_embeddings else canonical.HEAD,), head, "rows"))
    return slots


def _value(parameter: Parameter) -> Tensor:
    return parameter.detach()


def iter_canonical(
    model: Model, *, read: Callable[[Parameter], Tensor] = _value, dtype: torch.dtype | None = None
) -> Iterator[tuple[str, Tensor]]:
    """Yield (name, full tensor) in the model's order, on every rank; all ranks of the model must iterate.

    `read` says what to take of a parameter (its value by default; `lambda p: p.grad` gives full gradients);
    tensors come in `dtype`, the model's by default, on the rank's device, one slot in memory at a time.
    """
    order = {name: index for index, name in enumerate(canonical.canonical_shapes(model.config))}
    yield from _gathered(model, lambda names: order[names[0]], read, dtype or model.dtype)


def iter_by_name(model: Model, *, read: Callable[[Parameter], Tensor] = _value) -> Iterator[tuple[str, Tensor]]:
    """`iter_canonical` in the order of the names, with no more than a layer in memory at a time.

    A slot's tensors wait for those whose names stand between theirs, which are of the same layer.
    """
    waiting, ahead = sorted(canonical.canonical_shapes(model.config), reverse=True), {}
    for name, tensor in _gathered(model, min, read, model.dtype):
        ahead[name] = tensor
        while waiting and waiting[-1] in ahead:
            first = waiting.pop()
            yield first, ahead.pop(first)


def _gathered(
    model: Model, place: Callable[[tuple[str, ...]], Any], read: Callable[[Parameter], Tensor], dtype: torch.dtype
) -> Iterator[tuple[str, Tensor]]:
    """The full tensors of one slot after the other, in the order of their names' `place`."""
    tp, pp = model.topology.tp, model.topology.pp
    if any(block.lora for block in model.blocks()):
        raise RuntimeError("the model has adapters, of which its weights know nothing: merge them first")
    shapes = canonical.canonical_shapes(model.config)
    slots = {slot.names: slot for slot in local_slots(model)}
    owner: dict[tuple[str, ...], int] = {}
    # Stages must agree on who sends each tensor before the first broadcast: each knows only its own.
    for stage, names_of_stage in enumerate(gather_objects(pp, list(slots))):
        for names in names_of_stage:
            owner.setdefault(names, stage)  # a tied copy: the embedding's stage speaks for both
    for names in sorted(owner, key=place):
        if owner[names] == pp.rank:
            part = read(slots[names].parameter).to(dtype)
            full = canonical.unshard(model.config, slots[names].kind, gather_parts(tp, part))
        else:
            # Received by every stage, so that all ranks yield the same sequence and may run
            # collectives between two tensors.
            full = tuple(torch.empty(shapes[name], dtype=dtype, device=model.topology.device) for name in names)
        for name, tensor in zip(names, full, strict=True):
            if pp.size > 1:
                tensor = tensor.contiguous()
                dist.broadcast(tensor, group=pp.group, group_src=owner[names])
            yield name, tensor


def gather_parts(axis: Axis, part: Tensor) -> list[Tensor]:
    """Every rank's part, all of one shape, in rank order. Collective."""
    if axis.size == 1:
        return [part]
    parts = [torch.empty_like(part, memory_format=torch.contiguous_format) for _ in range(axis.size)]
    dist.all_gather(parts, part.contiguous(), group=axis.group)
    return parts


def canonical_state(
    model: Model, *, read: Callable[[Parameter], Tensor] = _value, dtype: torch.dtype | None = None
) -> dict[str, Tensor]:
    """Full, unsharded tensors by their Hugging Face names: all of `iter_canonical` on the CPU of every rank."""
    # A copy even on the CPU: the yielded tensor may be the parameter's own memory, which training changes.
    return {name: tensor.to("cpu", copy=True) for name, tensor in iter_canonical(model, read=read, dtype=dtype)}


def check_shapes(
    model_shapes: Mapping[str, tuple[int, ...]], stored: Mapping[str, tuple[int, ...]], where: str
) -> None:
    """Refuse a set of tensors that is not this model's; UserError names the first wrong tensor."""
    for name, shape in model_shapes.items():
        if name not in stored:
            raise UserError(f"{where}: tensor `{name}` is missing")
        if tuple(stored[name]) != shape:
            raise UserError(f"{where}: tensor `{name}` has shape {tuple(stored[name])}, the model needs {shape}")
    for name in stored:
        if name not in model_shapes:
            raise UserError(f"{where}: tensor `{name}` is not part of the model")


@torch.no_grad()
def load_canonical(model: Model, full: Mapping[str, Tensor], where: str = "weights") -> None:
    """Copy each rank's share of full tensors into its parameters, in place; `full` may read lazily.

    Raises UserError, `where` in front, when a tensor is missing, has another shape, or holds what is no finite number
    or none in the model's dtype.
    """
    shapes, tp = canonical.canonical_shapes(model.config), model.topology.tp
    for slot in local_slots(model):
        tensors = []
        for name in slot.names:
            if name not in full:
                raise UserError(f"{where}: tensor `{name}` is missing")
            tensor = full[name]
            check_shapes({name: shapes[name]}, {name: tuple(tensor.shape)}, where)
            # Converted before it is looked at: a weight that is finite in fp32 may overflow in half precision.
            converted = tensor.to(model.dtype)
            if not all(bool(rows.isfinite().all()) for rows in converted.split(_ROWS_CHECKED)):
                beyond = f"numbers beyond what {model.dtype} can hold"
                what = beyond if bool(tensor.isfinite().all()) else "NaN or infinity"
                raise UserError(f"{where}: tensor `{name}` holds {what}")
            tensors.append(converted)
        slot.parameter.copy_(canonical.shard(model.config, slot.kind, tensors, tp.rank, tp.size))


@torch.no_grad()
def init_weights(model: Model, seed: int) -> None:
    """Draw every canonical tensor from its own generator, seeded by (seed, name), and keep this rank's share.

    So all layouts start from the same values. Normal with `init_std`, truncated at three of it; norms are one, biases
    zero.
    """
    config, tp = model.config, model.topology.tp
    shapes = canonical.canonical_shapes(config)
    for slot in local_slots(model):
        full = [_draw(name, shapes[name], config.init_std, seed) for name in slot.names]
        slot.parameter.copy_(canonical.shard(config, slot.kind, full, tp.rank, tp.size))


def _draw(name: str, shape: tuple[int, ...], std: float, seed: int) -> Tensor:
    """fp32 on the CPU, whose generator gives the same numbers on every machine."""
    if canonical.is_norm(name):
        return torch.ones(shape)
    if canonical.is_bias(name):
        return torch.zeros(shape)
    generator = named_generator(seed, name)
    return torch.nn.init.trunc_normal_(torch.empty(shape), 0.0, std, -3 * std, 3 * std, generator=generator)


def named_generator(seed: int, name: str) -> torch.Generator:
    """A generator for one tensor's first values.

    By name and not by order, so that a layer draws the same whichever stage it lies on.
    """
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
