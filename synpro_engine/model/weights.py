"""The parameters of a model by role, as typed views of the module's own storage.

For code that computes with the weights directly (a functional decoder, per-example gradients): which parameter plays
which part, and how fused tensors are ordered. Nothing is copied.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor
from torch.nn import Parameter

ADAPTERS = "adapters"
"""Of one of Megatron's layers: the attribute that holds its low-rank adapters, if it has any (`lora`)."""


@dataclass(frozen=True, kw_only=True)
class LowRank:
    """What is added to a product W x: scale b a x. a [rank, in] and b [parts, out / parts, rank], split as W is."""

    a: Parameter
    b: Parameter
    scale: float


@dataclass(frozen=True, kw_only=True)
class HeadCounts:
    """Attention heads as one tensor-parallel rank holds them (or all of them, when so asked)."""

    heads: int
    kv_heads: int
    head_dim: int

    @property
    def queries_per_group(self) -> int:
        """Query heads that share one key head."""
        return self.heads // self.kv_heads


@dataclass(frozen=True, kw_only=True)
class BlockWeights:
    """One block's parameters on this rank: the module's own tensors, so an optimizer step is seen at once.

    With np query heads, ng key heads of width hn on this rank, H the model's width and F the gated width:

    - `qkv` [(np + 2 ng) hn, H]: for each key head its np/ng query heads, then its key, then its value
      (q q k v | q q k v ...); `grouped_qkv` takes the product apart;
    - `qkv_bias` [(np + 2 ng) hn] or None, in the same order, added to the product;
    - `proj` [H, np hn] and `fc2` [H, F/tp]: their products are partial sums over tensor-parallel ranks;
    - `fc1` [2 F/tp, H]: this rank's gate rows, then its up rows; SwiGLU is `fc2 @ (silu(gate) * up)`;
    - `attention_norm`, `mlp_norm` [H]: applied to the sublayer's output (after the reduction, before the
      residual is added) when `norm_after`, else to its input;
    - `q_norm` and `k_norm`, or None: RMSNorm before the rotation. [np hn] and [ng hn]: over the full width of all
      ranks' heads, the mean of squares being over heads x head_dim of the whole model. [hn] and [hn] when
      `norm_by_head`: over each head alone, the same weight for all heads of all ranks;
    - `lora`: low-rank adapters of the products, by the names of their weights.
    """

    layer: int
    qkv: Parameter
    qkv_bias: Parameter | None
    proj: Parameter
    fc1: Parameter
    fc2: Parameter
    attention_norm: Parameter
    mlp_norm: Parameter
    norm_after: bool
    norm_by_head: bool
    q_norm: Parameter | None
    k_norm: Parameter | None
    lora: Mapping[str, LowRank] = field(default_factory=dict)


def grouped_qkv(mixed: Tensor, counts: HeadCounts) -> tuple[Tensor, Tensor]:
    """View `x @ qkv.T` by key head: [..., (np + 2 ng) hn] -> [..., ng, np/ng + 1, hn], [..., ng, hn].

    The first holds each group's queries and then its key, for what is done to both alike; the second the values.
    """
    queries = counts.queries_per_group
    grouped = mixed.unflatten(-1, (counts.kv_heads, queries + 2, counts.head_dim))
    return grouped[..., : queries + 1, :], grouped[..., queries + 1, :]


def block_weights(layer: Any) -> BlockWeights:
    """View one Megatron layer built by `specs.layer_spec`."""
    attention, mlp, norm_after = layer.self_attention, layer.mlp, layer.norm_after
    q_norm, k_norm = attention.q_layernorm, attention.k_layernorm
    return BlockWeights(
        layer=layer.layer_number - 1,
        qkv=attention.linear_qkv.weight,
        qkv_bias=attention.linear_qkv.bias,
        proj=attention.linear_proj.weight,
        fc1=mlp.linear_fc1.weight,
        fc2=mlp.linear_fc2.weight,
        attention_norm=(layer.post_self_attn_layernorm if norm_after else layer.input_layernorm).weight,
        mlp_norm=(layer.post_mlp_layernorm if norm_after else layer.pre_mlp_layernorm).weight,
        norm_after=norm_after,
        norm_by_head=attention.config.qk_layernorm,
        q_norm=None if q_norm is None else q_norm.weight,
        k_norm=None if k_norm is None else k_norm.weight,
        lora={
            name: LowRank(a=adapter.lora_a, b=adapter.lora_b, scale=adapter.scale)
            for name, adapter in getattr(layer, ADAPTERS, {}).items()
        },
    )


def blocks_of(chunks: Iterable[Any]) -> list[BlockWeights]:
    """All blocks on this rank, in the order of the model's layers."""
    blocks = [block_weights(layer) for chunk in chunks for layer in chunk.decoder.layers]
    return sorted(blocks, key=lambda block: block.layer)
