"""A model's low-rank adapters as a directory that PEFT and servers read: adapter_config.json and one safetensors file.

Of what is one product here, queries, keys and values or gates and ups, each has a B of its own and the shared A.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from synpro_engine.config import atomic_write_text, json_text
from synpro_engine.dist import on_main, shared_artifact
from synpro_engine.model.canonical import unshard
from synpro_engine.model.lora import adapters_of
from synpro_engine.model.model import Model
from synpro_engine.model.state import gather_parts
from synpro_engine.model.tensor_files import save_tensors

KIND = "adapter"
_TARGETS = {
    "qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "proj": ("self_attn.o_proj",),
    "fc1": ("mlp.gate_proj", "mlp.up_proj"),
    "fc2": ("mlp.down_proj",),
}


def export_adapters(model: Model, directory: Path, *, parents: Mapping[str, Path] | None = None) -> None:
    """Write the adapters, in the model's dtype; the directory appears whole or not at all. Collective.

    Without a pipeline. UserError where it cannot be written.
    """
    topology = model.topology
    assert topology.pp.size == 1, "adapters are written where every rank holds all layers"
    held = [(layer, name, adapter) for layer, name, adapter in adapters_of(model)]
    _, _, first = held[0]
    rank = len(first.lora_a)
    config: dict[str, Any] = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": rank,
        "lora_alpha": first.scale * rank,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": sorted({target.split(".")[1] for _, name, _ in held for target in _TARGETS[name]}),
        "layers_to_transform": sorted({layer for layer, _, _ in held}),
        "layers_pattern": "layers",
        "inference_mode": True,
        "base_model_name_or_path": None,
    }
    tensors = {name: tensor.to("cpu", copy=True).contiguous() for name, tensor in _named(model)}

    def write(folder: Path) -> None:
        atomic_write_text(folder / "adapter_config.json", json_text(config, indent=2) + "\n")
        save_tensors(folder / "adapter_model.safetensors", tensors)

    with shared_artifact(topology, directory, KIND, config, parents) as folder:
        on_main(topology, lambda: write(folder))


def _named(model: Model) -> Iterator[tuple[str, Tensor]]:
    """The whole tensors by PEFT's names. Collective."""
    for layer, name, adapter in adapters_of(model):
        parts = {"A": adapter.lora_a, "B": adapter.lora_b.flatten(0, 1)}
        for (letter, part), kind in zip(parts.items(), adapter.kinds, strict=True):
            whole = unshard(model.config, kind, gather_parts(model.topology.tp, part.detach()))
            for at, target in enumerate(_TARGETS[name]):
                # One A for all of them.
                tensor = whole[at] if letter == "B" else whole[0]
                yield f"base_model.model.model.layers.{layer}.{target}.lora_{letter}.weight", tensor
