"""Cutting full tensors into ranks' parameters and joining them again."""

from typing import get_args

import pytest
import torch

from synpro_engine.model.canonical import Kind, canonical_shapes, shard, unshard
from synpro_engine.model.config import ModelConfig
from synpro_engine.model.weights import HeadCounts, grouped_qkv

CONFIG = ModelConfig(layers=1, d_model=24, heads=8, kv_heads=4, head_dim=6, ffn=16, vocab_size=32, seq_len=8)
_TENSORS = {
    "whole": ["model.norm.weight"],
    "rows": ["model.embed_tokens.weight"],
    "columns": ["model.layers.0.self_attn.o_proj.weight"],
    "qkv": [f"model.layers.0.self_attn.{name}_proj.weight" for name in "qkv"],
    "gate_up": [f"model.layers.0.mlp.{name}_proj.weight" for name in ("gate", "up")],
}


def _full(kind: str) -> list[torch.Tensor]:
    shapes = canonical_shapes(CONFIG)
    return [torch.randn(shapes[name]) for name in _TENSORS[kind]]


@pytest.mark.parametrize("size", [1, 2, 4])
@pytest.mark.parametrize("kind", get_args(Kind))
def test_joining_the_ranks_parts_gives_the_full_tensors(kind: Kind, size: int) -> None:
    full = _full(kind)
    joined = unshard(CONFIG, kind, [shard(CONFIG, kind, full, rank, size) for rank in range(size)])
    assert all(torch.equal(a, b) for a, b in zip(full, joined, strict=True))


@pytest.mark.parametrize("size", [1, 2, 4])
def test_a_rank_s_fused_product_holds_its_own_heads(size: int) -> None:
    full, x = _full("qkv"), torch.randn(5, CONFIG.d_model)
    counts = HeadCounts(heads=8 // size, kv_heads=4 // size, head_dim=6)
    for rank in range(size):
        query_key, value = grouped_qkv(x @ shard(CONFIG, "qkv", full, rank, size).T, counts)
        mine = (query_key[..., :-1, :].flatten(-3, -2), query_key[..., -1, :], value)
        for product, weight in zip(mine, full, strict=True):
            want = (x @ weight.T).unflatten(-1, (-1, 6)).chunk(size, dim=1)[rank]
            torch.testing.assert_close(product, want, rtol=0, atol=1e-5)
