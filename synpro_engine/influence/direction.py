"""Directions in weight space: what influence is measured along.

A direction v stands for a change of the weights from theta to theta - v; it is the displacement theta - theta' of a
probe, or a reference gradient, which a step of descent would subtract. With this sign <grad L(x), v> is, to first
order, L(x; theta) - L(x; theta - v): positive where the change lowers the loss on x, as the influence of two forwards.

Knows tensors, this rank's shards of them, and how they are stored in any layout; how a direction is made from data is
in `reference`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import Tensor
from torch.nn import Parameter

from synpro_engine.config import UserError, check_replaceable, new_artifact, read_manifest
from synpro_engine.config.artifact import hash_directory
from synpro_engine.dist import on_main, sum_over
from synpro_engine.model import layout
from synpro_engine.model.model import Model
from synpro_engine.model.state import check_shapes, iter_canonical, local_slots
from synpro_engine.model.tensor_files import SafetensorsFiles, write_tensors

KIND = "direction"


@dataclass(frozen=True)
class Direction:
    """v on this rank: a tensor for a parameter, by the parameter's name in `Model.named_parameters`, of its shape.

    Parameters that are not named have v = 0. Tied weights that stand on two pipeline stages carry the same tensor on
    both, as they carry the same values.
    """

    tensors: Mapping[str, Tensor]

    def scaled(self, factor: float) -> Direction:
        """factor * v."""
        return Direction({name: tensor * factor for name, tensor in self.tensors.items()})

    def minus(self, other: Direction) -> Direction:
        """v - other; with a control's displacement, what the reference data alone did."""
        if set(self.tensors) != set(other.tensors):
            raise ValueError("other: a direction over other parameters")
        return Direction({name: tensor - other.tensors[name] for name, tensor in self.tensors.items()})

    def squared(self) -> Direction:
        """v * v, entry by entry."""
        return Direction({name: tensor.square() for name, tensor in self.tensors.items()})

    def to(self, dtype: torch.dtype) -> Direction:
        """v stored in `dtype`."""
        return Direction({name: tensor.to(dtype) for name, tensor in self.tensors.items()})


def weights_of(model: Model) -> dict[str, Tensor]:
    """Copies of this rank's parameters, by name."""
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def displacement(theta: Model, probe: Model) -> Direction:
    """theta - theta' in fp32 (fp64 for fp64 models).

    bf16 weights hold a probe's small steps coarsely: one of 1e-4 at a weight of 0.02 is lost half the time. There make
    the displacement where the fp32 master weights are, with `reference.probe_direction`.
    """
    if theta.config != probe.config:
        raise ValueError("theta and probe must be models of the same configuration")
    kind = torch.promote_types(theta.dtype, torch.float32)
    pairs = zip(theta.named_parameters(), probe.parameters(), strict=True)
    return Direction({name: before.detach().to(kind) - after.detach().to(kind) for (name, before), after in pairs})


def check_fits(model: Model, direction: Direction) -> None:
    """Raise ValueError where a direction names what this model does not have, in this shape and on this device."""
    parameters = dict(model.named_parameters())
    for name, tensor in direction.tensors.items():
        if name not in parameters:
            raise ValueError(f"direction: this rank has no parameter {name}")
        if tensor.shape != parameters[name].shape or tensor.device != parameters[name].device:
            expected, found = parameters[name], f"{tuple(tensor.shape)} on {tensor.device}"
            raise ValueError(f"direction: {name} is {tuple(expected.shape)} on {expected.device}, got {found}")


def inner(model: Model, a: Direction, b: Direction) -> float:
    """<a, b> over the whole model, in fp64: split parameters in parts, the others once. Collective over the model."""
    tp, pp, both = model.topology.tp, model.topology.pp, set(a.tensors) & set(b.tensors)
    total = torch.zeros((), dtype=torch.float64, device=model.topology.device)
    # Tied weights stand on the first stage and on the last.
    twice = model.config.tie_embeddings and pp.size > 1 and model.topology.is_last_stage
    again = model.output_weight() if twice else None
    for name, parameter in model.named_parameters():
        split = getattr(parameter, "tensor_model_parallel", False)
        if name in both and (split or tp.rank == 0) and parameter is not again:
            total += (a.tensors[name] * b.tensors[name]).sum(dtype=torch.float64)
    return float(sum_over(pp, sum_over(tp, total)))


@contextlib.contextmanager
def displaced(model: Model, direction: Direction, scale: float) -> Iterator[None]:
    """Put `model` at theta + scale * v within the block; afterwards it has its own storage back, bit for bit.

    The sum is computed in fp32 or better and rounded to the model's dtype; it takes one more copy of the parameters.
    """
    check_fits(model, direction)
    own = {name: (parameter, parameter.data) for name, parameter in model.named_parameters()}
    try:
        for name, tensor in direction.tensors.items():
            parameter, data = own[name]
            kind = torch.promote_types(tensor.dtype, torch.float32)
            parameter.data = torch.add(data.to(kind), tensor.to(kind), alpha=scale).to(data.dtype)
        yield
    finally:
        for parameter, data in own.values():
            parameter.data = data


def save_direction(
    path: Path,
    model: Model,
    direction: Direction,
    *,
    parents: Mapping[str, Path] | None = None,
    seed: int | None = None,
) -> None:
    """Write `direction` as full fp32 tensors by their Hugging Face names, with a manifest. Collective over the model.

    parents: artifacts it was made from. Raises UserError on every rank when something else lies at `path`, and when it
    cannot be written; then nothing appears there.
    """
    on_main(model.topology, lambda: check_replaceable(path, KIND))
    of = {parameter: direction.tensors.get(name) for name, parameter in model.named_parameters()}

    def read(parameter: Parameter) -> Tensor:
        tensor = of[parameter]
        return torch.zeros_like(parameter, dtype=torch.float32) if tensor is None else tensor

    tensors = iter_canonical(model, read=read, dtype=torch.float32)
    fault: UserError | OSError | None = None
    if model.topology.is_main:
        try:
            _write(path, model, tensors, parents or {}, seed)
        except (UserError, OSError) as error:
            fault = error
    for _ in tensors:  # each is gathered from all ranks, so all go through them, whether or not rank 0 could write
        pass
    on_main(model.topology, lambda: _raise(fault))


def _write(
    path: Path, model: Model, tensors: Iterator[tuple[str, Tensor]], parents: Mapping[str, Path], seed: int | None
) -> None:
    shapes = layout.canonical_shapes(model.config)
    with new_artifact(path, KIND, {"model": model.config.model_dump(mode="json")}, parents, seed) as partial:
        try:
            write_tensors(partial, tensors, shapes, torch.float32)
        except SafetensorError as error:  # its writer wraps what the file system says
            raise UserError(f"{path}: cannot be written ({error})") from error


def _raise(fault: Exception | None) -> None:
    if fault is not None:
        raise fault


def load_direction(path: Path, model: Model) -> Direction:
    """Read this rank's share of what `save_direction` wrote, in fp32, in any layout.

    Raises UserError for a missing or damaged artifact, or one of another model.
    """

    def check() -> None:
        manifest = read_manifest(path)
        if manifest.kind != KIND:
            raise UserError(f"{path}: is a {manifest.kind}, not a direction")
        if hash_directory(path) != manifest.content_hash:
            raise UserError(f"{path}: damaged direction (its files are not those of its manifest)")
        check_shapes(layout.canonical_shapes(model.config), SafetensorsFiles(path).shapes(), str(path))

    on_main(model.topology, check)
    full, tp = SafetensorsFiles(path), model.topology.tp
    names = {parameter: name for name, parameter in model.named_parameters()}
    tensors = {}
    for slot in local_slots(model):
        share = layout.shard(model.config, slot.kind, [full[name] for name in slot.names], tp.rank, tp.size)
        tensors[names[slot.parameter]] = share.to(model.topology.device, copy=True)
    return Direction(tensors)
