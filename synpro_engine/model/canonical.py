"""How full tensors and one rank's parameters correspond: pure functions, no process group.

Canonical tensors are unsharded, one per matrix, and named as Hugging Face names them. A parameter of
Megatron's may hold several of them, interleaved, and only a tensor-parallel rank's part.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import Parameter

from synpro_engine.model.config import ModelConfig
from synpro_engine.model.weights import BlockWeights

Kind = Literal["whole", "rows", "columns", "qkv", "gate_up"]

EMBEDDING = "model.embed_tokens.weight"
FINAL_NORM = "model.norm.weight"
HEAD = "lm_head.weight"


@dataclass(frozen=True)
class Slot:
    """One local parameter, the canonical tensors it holds a part of, and how."""

    names: tuple[str, ...]
    parameter: Parameter
    kind: Kind


def canonical_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Every canonical tensor's name and full shape, in the order of the model."""
    table = (config.vocab_size, config.d_model)
    shapes: dict[str, tuple[int, ...]] = {EMBEDDING: table}
    for layer in range(config.layers):
        shapes |= {f"model.layers.{layer}.{name}": shape for name, shape in _block_shapes(config).items()}
    shapes[FINAL_NORM] = (config.d_model,)
    # A tied head is no tensor of its own: written twice, the two could be loaded with different values.
    if not config.tie_embeddings:
        shapes[HEAD] = table
    return shapes


def _block_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    width, query, key = config.d_model, config.heads * config.head_size, config.kv_heads * config.head_size
    attention_norm, mlp_norm = _norm_names(config)
    shapes: dict[str, tuple[int, ...]] = {
        "self_attn.q_proj.weight": (query, width),
        "self_attn.k_proj.weight": (key, width),
        "self_attn.v_proj.weight": (key, width),
        "self_attn.o_proj.weight": (width, query),
        "mlp.gate_proj.weight": (config.ffn, width),
        "mlp.up_proj.weight": (config.ffn, width),
        "mlp.down_proj.weight": (width, config.ffn),
        attention_norm: (width,),
        mlp_norm: (width,),
    }
    if config.qkv_bias:
        shapes |= {f"self_attn.{part}_proj.bias": (size,) for part, size in (("q", query), ("k", key), ("v", key))}
    if config.qk_norm is not None:
        sizes = (config.head_size,) * 2 if config.qk_norm == "head" else (query, key)
        shapes |= {f"self_attn.{part}_norm.weight": (size,) for part, size in zip("qk", sizes, strict=True)}
    return shapes


def _norm_names(config: ModelConfig) -> tuple[str, str]:
    """The norms of (attention, MLP): on their outputs in OLMo-2, on their inputs in the others."""
    # The same name means another place in another family: only OLMo-2's "post_attention"
    # norm is one on attention's output.
    if config.norm_after:
        return "post_attention_layernorm.weight", "post_feedforward_layernorm.weight"
    return "input_layernorm.weight", "post_attention_layernorm.weight"


def is_norm(name: str) -> bool:
    """Whether a canonical tensor is a norm's weight (starts at one, is a vector)."""
    return name.endswith("norm.weight")


def is_bias(name: str) -> bool:
    """Whether a canonical tensor is a bias (starts at zero, is a vector)."""
    return name.endswith(".bias")


def block_slots(config: ModelConfig, block: BlockWeights) -> list[Slot]:
    """What one block holds on this rank."""
    attention_norm, mlp_norm = _norm_names(config)

    def slot(parameter: Parameter, kind: Kind, *names: str) -> Slot:
        return Slot(tuple(f"model.layers.{block.layer}.{name}" for name in names), parameter, kind)

    projections = (f"self_attn.{name}_proj.weight" for name in "qkv")
    slots = [
        slot(block.qkv, "qkv", *projections),
        slot(block.proj, "columns", "self_attn.o_proj.weight"),
        slot(block.fc1, "gate_up", "mlp.gate_proj.weight", "mlp.up_proj.weight"),
        slot(block.fc2, "columns", "mlp.down_proj.weight"),
        # Replicated over tensor-parallel ranks, where a full-width norm of queries or keys is split with its heads.
        slot(block.attention_norm, "whole", attention_norm),
        slot(block.mlp_norm, "whole", mlp_norm),
    ]
    if block.qkv_bias is not None:
        slots.append(slot(block.qkv_bias, "qkv", *(f"self_attn.{name}_proj.bias" for name in "qkv")))
    if block.q_norm is not None and block.k_norm is not None:
        kind = "whole" if block.norm_by_head else "rows"
        slots.append(slot(block.q_norm, kind, "self_attn.q_norm.weight"))
        slots.append(slot(block.k_norm, kind, "self_attn.k_norm.weight"))
    return slots


def shard(config: ModelConfig, kind: Kind, full: Sequence[Tensor], rank: int, size: int) -> Tensor:
    """This tensor-parallel rank's parameter from the full canonical tensors of a slot."""
    if kind == "whole":
        return full[0]
    if kind == "columns":
        return full[0].chunk(size, dim=1)[rank]
    # Each rank's own gate rows and then its own up rows: cutting the two stacked matrices
    # once would give a rank only gates.
    if kind == "gate_up":
        return torch.cat([tensor.chunk(size, dim=0)[rank] for tensor in full])
    fused = full[0]
    if kind == "qkv":  # matrices or biases of queries, keys and values -> per key head: its queries, its key, its value
        fused = torch.cat([tensor.unflatten(0, (config.kv_heads, -1)) for tensor in full], dim=1).flatten(0, 1)
    # Key heads are whole groups in a row here, so that an even cut gives each rank its
    # own heads with all their queries.
    return fused.chunk(size, dim=0)[rank]


def unshard(config: ModelConfig, kind: Kind, parts: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """The full canonical tensors of a slot from all tensor-parallel ranks' parameters, in rank order."""
    if kind == "whole":
        return (parts[0],)
    if kind == "columns":
        return (torch.cat(list(parts), dim=1),)
    if kind == "gate_up":
        halves = [part.chunk(2, dim=0) for part in parts]
        return torch.cat([gate for gate, _ in halves]), torch.cat([up for _, up in halves])
    fused = torch.cat(list(parts), dim=0)
    if kind != "qkv":
        return (fused,)
    queries = config.heads // config.kv_heads
    widths = [queries * config.head_size, config.head_size, config.head_size]
    grouped = fused.unflatten(0, (config.kv_heads, -1))
    return tuple(part.flatten(0, 1) for part in grouped.split(widths, dim=1))
