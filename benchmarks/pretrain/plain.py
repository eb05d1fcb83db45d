"""The engine's models in plain PyTorch, as one would write them: what its speed and memory are held to.

Parameters are named as Hugging Face names them, so that the same weights load by name. Shapes: B sequences, S
positions, H width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from synpro_engine.model.config import ModelConfig
from synpro_engine.model.rotary import cos_sin, inverse_frequencies


class Attention(nn.Module):
    """Causal attention with rotary positions, grouped keys, and norms of queries and keys where the family has them."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        query, key = config.heads * config.head_size, config.kv_heads * config.head_size
        self.q_proj = nn.Linear(config.d_model, query, bias=config.qkv_bias)
        self.k_proj = nn.Linear(config.d_model, key, bias=config.qkv_bias)
        self.v_proj = nn.Linear(config.d_model, key, bias=config.qkv_bias)
        self.o_proj = nn.Linear(query, config.d_model, bias=False)
        if config.qk_norm is not None:
            whole = config.qk_norm == "width"
            self.q_norm = nn.RMSNorm(query if whole else config.head_size, config.norm_eps)
            self.k_norm = nn.RMSNorm(key if whole else config.head_size, config.norm_eps)

    def forward(self, x_BSH: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """[B, S, H] -> [B, S, H]."""
        size = self.config.head_size
        q, k, v = self.q_proj(x_BSH), self.k_proj(x_BSH), self.v_proj(x_BSH)
        if self.config.qk_norm == "width":
            q, k = self.q_norm(q), self.k_norm(k)
        q, k, v = (x.unflatten(-1, (-1, size)) for x in (q, k, v))
        if self.config.qk_norm == "head":
            q, k = self.q_norm(q), self.k_norm(k)
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        q, k = _rotated(q, cos, sin).to(v.dtype), _rotated(k, cos, sin).to(v.dtype)
        grouped = self.config.heads != self.config.kv_heads
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=grouped)
        return self.o_proj(out.transpose(1, 2).flatten(-2))


class MLP(nn.Module):
    """SwiGLU."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.d_model, config.ffn, bias=False)
        self.up_proj = nn.Linear(config.d_model, config.ffn, bias=False)
        self.down_proj = nn.Linear(config.ffn, config.d_model, bias=False)

    def forward(self, x_BSH: Tensor) -> Tensor:
        """[B, S, H] -> [B, S, H]."""
        return self.down_proj(F.silu(self.gate_proj(x_BSH)) * self.up_proj(x_BSH))


class Block(nn.Module):
    """Attention and feed-forward layer, with norms before or behind them."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.norm_after = config.norm_after
        self.self_attn, self.mlp = Attention(config), MLP(config)
        # The same name stands at another place in OLMo-2.
        self.post_attention_layernorm = nn.RMSNorm(config.d_model, config.norm_eps)
        other = nn.RMSNorm(config.d_model, config.norm_eps)
        if self.norm_after:
            self.post_feedforward_layernorm = other
        else:
            self.input_layernorm = other

    def forward(self, x_BSH: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """[B, S, H] -> [B, S, H]."""
        if self.norm_after:
            x_BSH = x_BSH + self.post_attention_layernorm(self.self_attn(x_BSH, cos, sin))
            return x_BSH + self.post_feedforward_layernorm(self.mlp(x_BSH))
        x_BSH = x_BSH + self.self_attn(self.input_layernorm(x_BSH), cos, sin)
        return x_BSH + self.mlp(self.post_attention_layernorm(x_BSH))


class Decoder(nn.Module):
    """Embedding, blocks and final norm; `model` in the names of its parameters."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.d_model)
        self.layers = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = nn.RMSNorm(config.d_model, config.norm_eps)


class PlainModel(nn.Module):
    """A language model of the engine's families."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.model = Decoder(config)
        self.lm_head = nn.Linear(config.d_model, config.vocab_size, bias=False)
        if config.tie_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight
        self.register_buffer("frequency", inverse_frequencies(config), persistent=False)

    def forward(self, tokens_BS: Tensor, labels_BS: Tensor) -> Tensor:
        """Sum of -log p over all labels, fp32."""
        position = torch.arange(tokens_BS.size(1), device=tokens_BS.device)
        cos, sin = cos_sin(position, self.get_buffer("frequency"))
        x_BSH = self.model.embed_tokens(tokens_BS)
        for block in self.model.layers:
            x_BSH = block(x_BSH, cos, sin)
        logits = self.lm_head(self.model.norm(x_BSH))
        return F.cross_entropy(logits.float().flatten(0, 1), labels_BS.flatten(), reduction="sum")


def _rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Each pair (i, i + h/2) of the last dimension turned by its angle."""
    first, second = x.chunk(2, -1)
    return x * cos + torch.cat((-second, first), -1) * sin
