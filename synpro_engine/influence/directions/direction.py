"""Directions in weight space: what influence is measured along.

A direction v stands for a change of the weights from theta to theta - v; it is the displacement theta - theta' of a
probe, or a reference gradient, which a step of descent would subtract. With this sign <grad L(x), v> is, to first
order, L(x; theta) - L(x; theta - v): positive where the change lowers the loss on x, as the influence of two forwards.

How a direction is made from data is in `gradient`, `next_step` and `probe`, how it is stored in `direction_files`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from synpro_engine.dist import sum_over
from synpro_engine.model.model import Model


@dataclass(frozen=True)
class Direction:
    """v on this rank: a tensor for a parameter, by the parameter's name in `Model.named_parameters`, of its shape.

    Parameters that are not named have v = 0. Tied weights that stand on two pipeline stages carry the same tensor on
    both, as they carry the same values.
    """

    tensors: Mapping[str, Tensor]
    tangent: bool = False
    """Whether its length means nothing, as a gradient's: then theta - v is no place to go to, and only first-order
    estimates at theta make sense."""

    def scaled(self, factor: float) -> Direction:
        """factor * v."""
        return replace(self, tensors={name: tensor * factor for name, tensor in self.tensors.items()})

    def plus(self, other: Direction) -> Direction:
        """v + other."""
        if set(self.tensors) != set(other.tensors):
            raise ValueError("other: a direction over other parameters")
        tensors = {name: tensor + other.tensors[name] for name, tensor in self.tensors.items()}
        return Direction(tensors, tangent=self.tangent or other.tangent)

    def minus(self, other: Direction) -> Direction:
        """v - other; with a control's displacement, what the reference data alone did."""
        return self.plus(other.scaled(-1.0))

    def squared(self) -> Direction:
        """v * v, entry by entry."""
        return replace(self, tensors={name: tensor.square() for name, tensor in self.tensors.items()})


def weights_of(model: Model) -> dict[str, Tensor]:
    """Copies of this rank's parameters, by name."""
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def displacement(theta: Model, probe: Model) -> Direction:
    """theta - theta' in fp32 (fp64 for fp64 models).

    bf16 weights hold a probe's small steps coarsely: one of 1e-4 at a weight of 0.02 is lost half the time. There make
    the displacement where the fp32 master weights are, with `probe_direction`.
    """
    if theta.config != probe.config:
        raise ValueError("theta and probe must be models of the same configuration")
    precise = torch.promote_types(theta.dtype, torch.float32)
    pairs = zip(theta.named_parameters(), probe.parameters(), strict=True)
    return Direction(
        {name: before.detach().to(precise) - after.detach().to(precise) for (name, before), after in pairs}
    )


def check_fits(model: Model, direction: Direction) -> None:
    """Raise ValueError where a direction names what this model does not have, in this shape and on this device."""
    parameters = dict(model.named_parameters())
    for name, tensor in direction.tensors.items():
        if name not in parameters:
            raise ValueError(f"direction: this rank has no parameter {name}")
        if tensor.shape != parameters[name].shape or tensor.device != parameters[name].device:
            expected, got = parameters[name], f"{tuple(tensor.shape)} on {tensor.device}"
            raise ValueError(f"direction: {name} is {tuple(expected.shape)} on {expected.device}, got {got}")


def inner(model: Model, a: Direction, b: Direction) -> float:
    """<a, b> over the whole model, in fp64: split parameters in parts, the others once. Collective over the model."""
    tp, pp, both = model.topology.tp, model.topology.pp, set(a.tensors) & set(b.tensors)
    total = torch.zeros((), dtype=torch.float64, device=model.topology.device)
    # Tied weights stand on the first stage and on the last; they count on the first.
    tied_again = model.config.tie_embeddings and pp.size > 1 and model.topology.is_last_stage
    counted = model.output_weight() if tied_again else None
    for name, parameter in model.named_parameters():
        # Megatron's mark of a sharded parameter; the others are whole on each tensor-parallel rank.
        split = getattr(parameter, "tensor_model_parallel", False)
        if name in both and (split or tp.rank == 0) and parameter is not counted:
            # In fp64: in one fp32 sum over a large parameter small entries are lost, and clip factors depend on it.
            total += (a.tensors[name] * b.tensors[name]).sum(dtype=torch.float64)
    # Both axes on every rank, whatever it holds: one that skipped a sum would leave the others waiting.
    return float(sum_over(pp, sum_over(tp, total)))


def check_has_length(direction: Direction, use: str) -> None:
    """Raise ValueError where `use` needs a displacement and this is a tangent."""
    if direction.tangent:
        raise ValueError(f"{use} needs a displacement of the weights, not a gradient; use `dot` at theta")


@contextlib.contextmanager
def displaced(model: Model, direction: Direction, scale: float) -> Iterator[None]:
    """Put `model` at theta + scale * v within the block; afterwards it has its own storage back, bit for bit.

    The sum is computed in fp32 or better and rounded to the model's dtype; it takes one more copy of the parameters.
    """
    check_fits(model, direction)
    # Other storage, not + v and - v in place, which rounds. Views of theta's own, such as an engine's, keep theta.
    storage = {name: (parameter, parameter.data) for name, parameter in model.named_parameters()}
    try:
        for name, tensor in direction.tensors.items():
            parameter, data = storage[name]
            precise = torch.promote_types(tensor.dtype, torch.float32)
            parameter.data = torch.add(data.to(precise), tensor.to(precise), alpha=scale).to(data.dtype)
            del tensor  # within the block the direction is the caller's alone, who may free it
        yield
    finally:
        for parameter, data in storage.values():
            parameter.data = data
