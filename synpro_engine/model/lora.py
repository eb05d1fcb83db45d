"""Low-rank adapters beside the linear layers of frozen blocks (LoRA, Hu et al. 2021, arXiv 2106.09685).

A layer's product W x becomes W x + scale B A x, with A [rank, in] and B [out, rank]; W does not train. B begins at
zero, so that a model computes the same with fresh adapters as without. Queries, keys and values, which are one product
here, share their A, and so do gates and ups.

Under tensor parallelism each adapter is split where its layer is: of a layer split by rows, B is; of one split by
columns, A is, and what it makes is summed before B.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.tensor_parallel import mappings
from megatron.core.tensor_parallel.layers import set_tensor_model_parallel_attributes
from megatron.core.transformer.utils import make_sharded_tensors_for_checkpoint
from torch import Tensor, nn

from synpro_engine.config import UserError
from synpro_engine.dist import Axis
from synpro_engine.model.canonical import Kind, shard
from synpro_engine.model.model import Model
from synpro_engine.model.state import named_generator
from synpro_engine.model.weights import ADAPTERS

_KINDS: dict[str, tuple[Kind, Kind]] = {
    "qkv": ("whole", "qkv"),
    "proj": ("columns", "whole"),
    "fc1": ("whole", "gate_up"),
    "fc2": ("columns", "whole"),
}


class Adapter(nn.Module):
    """What is added to one of Megatron's linear layers; it hooks itself to the layer, and has its split.

    `lora_a` [rank, in] and `lora_b` [parts, out / parts, rank] on this rank: a gated layer has its gates' rows and its
    ups' as two parts, each of them split over ranks. `kinds`: how the two hold the whole ones (`canonical`).
    """

    def __init__(self, linear: nn.Module, name: str, *, rank: int, scale: float, tp: Axis) -> None:
        super().__init__()
        weight: Any = linear.weight
        settings: Any = linear.config
        (rows, columns), like = weight.shape, {"dtype": weight.dtype, "device": weight.device}
        self.scale, self.kinds, self._tp = scale, _KINDS[name], tp
        self._sequence_parallel = bool(settings.sequence_parallel)
        parts = 2 if self.kinds[1] == "gate_up" else 1
        self.lora_a = nn.Parameter(torch.zeros(rank, columns, **like))
        self.lora_b = nn.Parameter(torch.zeros(parts, rows // parts, rank, **like))
        split, whole = (self.lora_b, self.lora_a) if self.by_rows else (self.lora_a, self.lora_b)
        set_tensor_model_parallel_attributes(split, True, 1, 1)
        # Each rank has seen its own part of the sequence: Megatron sums the gradients of what is marked so.
        whole.sequence_parallel = self._sequence_parallel  # pyright: ignore[reportAttributeAccessIssue]
        self._hook = linear.register_forward_hook(self._add)

    @property
    def by_rows(self) -> bool:
        """Whether the layer is split by rows, and B with it; else by columns, and A with it."""
        return self.kinds[0] == "whole"

    def forward(self, x: Tensor) -> Tensor:
        """scale B A x, of the layer's input [s, b, in] and in the shape of its output [s, b, out]."""
        low, group = F.linear(x, self.lora_a), self._tp.group
        if self.by_rows:
            # The layer gathers its whole input; here its few numbers behind A are enough.
            gather, copy = mappings.gather_from_sequence_parallel_region, mappings.copy_to_tensor_model_parallel_region
            low = gather(low, group=group) if self._sequence_parallel else copy(low, group=group)
        elif self._sequence_parallel:
            low = mappings.reduce_scatter_to_sequence_parallel_region(low, group=group)
        else:
            low = mappings.reduce_from_tensor_model_parallel_region(low, group=group)
        return self.scale * F.linear(low, self.lora_b.flatten(0, 1))

    def _add(self, _linear: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, Any]) -> tuple[Tensor, Any]:
        return output[0] + self(inputs[0]), output[1]

    def merge_into(self, weight: Tensor) -> None:
        """Add scale B A to the layer's weight, in place, and to nothing from then on."""
        product = self.lora_b.float().flatten(0, 1) @ self.lora_a.float()
        weight.copy_(weight.float() + self.scale * product)
        self._hook.remove()
        # Whoever still holds it would add it once more.
        self.lora_b.zero_()

    def sharded_state_dict(
        self, prefix: str = "", sharded_offsets: tuple[Any, ...] = (), metadata: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """Megatron's question where each parameter lies in the whole model."""
        split = {"lora_b": 1} if self.by_rows else {"lora_a": 1}
        return make_sharded_tensors_for_checkpoint(
            self.state_dict(prefix="", keep_vars=True), prefix, split, sharded_offsets,
            tp_group=self._tp.group, dp_cp_group=(metadata or {}).get("dp_cp_group"),
        )  # fmt: skip


def add_adapters(model: Model, *, rank: int, alpha: float, seed: int) -> None:
    """Put adapters of that rank beside the linear layers that train, and freeze all but these; scale is alpha / rank.

    The first values are alike in every layout: A's are uniform within 1 / sqrt(in), drawn by `seed` and name. To be
    called before an engine or a sampler is made. UserError where the rank is not below the model's width.
    """
    assert model.topology.pp.size == 1, "stages would not agree on whether there are any"
    if rank >= model.config.d_model:
        raise UserError(f"`lora.rank`: {rank} is not below the model's width {model.config.d_model}")
    for layer in _layers(model):
        assert not hasattr(layer, ADAPTERS), "the model has adapters already"
        adapters = nn.ModuleDict()
        for name, linear in _linears(layer).items():
            if linear.weight.requires_grad:
                adapter = Adapter(linear, name, rank=rank, scale=alpha / rank, tp=model.topology.tp)
                _draw(adapter.lora_a, adapter.kinds[0], named_generator(seed, f"{layer.layer_number}.{name}"), model)
                adapters[name] = adapter
        if adapters:
            layer.add_module(ADAPTERS, adapters)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(f".{ADAPTERS}." in name)


@torch.no_grad()
def merge_adapters(model: Model) -> None:
    """Add each adapter to its layer's weight, in place, and remove it; nothing where there is none.

    The weights' memory may be shared with a reference policy, which is then one no longer.
    """
    for layer in _layers(model):
        for name, adapter in getattr(layer, ADAPTERS, {}).items():
            adapter.merge_into(_linears(layer)[name].weight)
        if hasattr(layer, ADAPTERS):
            delattr(layer, ADAPTERS)


def adapters_of(model: Model) -> Iterator[tuple[int, str, Adapter]]:
    """The adapters on this rank: the layer's number from 0, the layer's product (as in `BlockWeights`), the adapter."""
    for layer in _layers(model):
        for name, adapter in getattr(layer, ADAPTERS, {}).items():
            yield layer.layer_number - 1, name, adapter


def has_adapters(model: Model) -> bool:
    """Whether any block of the model has some."""
    return next(adapters_of(model), None) is not None


def _layers(model: Model) -> Iterator[Any]:
    for chunk in model.chunks:
        yield from chunk.decoder.layers


def _linears(layer: Any) -> dict[str, Any]:
    attention, mlp = layer.self_attention, layer.mlp
    return {"qkv": attention.linear_qkv, "proj": attention.linear_proj, "fc1": mlp.linear_fc1, "fc2": mlp.linear_fc2}


@torch.no_grad()
def _draw(lora_a: Tensor, kind: Kind, generator: torch.Generator, model: Model) -> None:
    tp, (rank, columns) = model.topology.tp, lora_a.shape
    columns *= tp.size if kind == "columns" else 1
    full = torch.empty(rank, columns).uniform_(-(columns**-0.5), columns**-0.5, generator=generator)
    lora_a.copy_(shard(model.config, kind, [full], tp.rank, tp.size))
