"""The shape of a decoder and what a layout must divide.

Knows sizes and families; knows nothing of Megatron, files or training.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, ValidationInfo, field_validator

from synpro_engine.config import Config, UserError
from synpro_engine.dist import Topology


class ModelConfig(Config):
    """A decoder-only transformer with RoPE, RMSNorm, SwiGLU and no biases.

    `olmo2` normalises each sublayer's output and the full width of queries and keys (arXiv 2501.00656);
    `llama` normalises each sublayer's input (arXiv 2302.13971).
    """

    family: Literal["olmo2", "llama"] = "olmo2"
    """Where the norms stand: `olmo2` or `llama`."""
    layers: int = Field(ge=1)
    """Number of blocks."""
    d_model: int = Field(ge=1)
    """Width of the residual stream."""
    heads: int = Field(ge=1)
    """Query heads."""
    kv_heads: int = Field(ge=1)
    """Key and value heads; divides `heads`."""
    head_dim: int | None = Field(default=None, ge=2)
    """Width of one head; d_model / heads where not given."""
    ffn: int = Field(ge=1)
    """Width of the gated hidden layer (SwiGLU)."""
    vocab_size: int = Field(ge=2)
    """Rows of the embedding, padding included."""
    seq_len: int = Field(ge=1)
    """Longest sequence in tokens."""
    rope_theta: float = Field(default=500_000.0, gt=0)
    """Base of the rotary position embedding."""
    norm_eps: float = Field(default=1e-6, gt=0)
    """Epsilon of every RMSNorm."""
    tie_embeddings: bool = False
    """Use the embedding as the output layer too."""
    init_std: float = Field(default=0.02, gt=0)
    """Standard deviation of the initial weights, truncated at three of them."""

    @field_validator("kv_heads")
    @classmethod
    def _kv_heads_divide_heads(cls, value: int, info: ValidationInfo) -> int:
        heads = info.data.get("heads", value)
        if heads % value:
            raise ValueError(f"must divide heads ({heads})")
        return value

    @field_validator("head_dim")
    @classmethod
    def _heads_have_a_width(cls, value: int | None, info: ValidationInfo) -> int | None:
        d_model, heads = info.data.get("d_model"), info.data.get("heads")
        if value is None and d_model and heads and d_model % heads:
            raise ValueError(f"must be given, for d_model ({d_model}) is not a multiple of heads ({heads})")
        width = value if value is not None else (d_model // heads if d_model and heads else 2)
        if width % 2:
            raise ValueError(f"rotary positions need an even width of a head, this one is {width}")
        # One spelling per shape, so that equal shapes compare equal.
        return None if d_model and heads and width * heads == d_model else value

    model_config = Config.model_config | {"validate_default": True}

    @property
    def head_size(self) -> int:
        """Width of one head."""
        return self.head_dim or self.d_model // self.heads

    def parameter_count(self, *, embeddings: bool = True) -> int:
        """Number of parameters; without `embeddings` neither the embedding nor the output layer counts."""
        attention = 2 * self.d_model * (self.heads + self.kv_heads) * self.head_size
        norms = 2 * self.d_model
        if self.family == "olmo2":
            norms += (self.heads + self.kv_heads) * self.head_size
        blocks = self.layers * (attention + 3 * self.d_model * self.ffn + norms) + self.d_model
        tables = (1 if self.tie_embeddings else 2) * self.vocab_size * self.d_model
        return blocks + (tables if embeddings else 0)


def check_layout(config: ModelConfig, topology: Topology) -> None:
    """Refuse a layout that cannot divide this model; UserError names the model's key and the layout's."""
    tp = topology.tp.size
    for key in ("heads", "kv_heads", "ffn", "vocab_size"):
        value = getattr(config, key)
        if value % tp:
            raise UserError(f"`model.{key}`: {value} cannot be divided by `parallel.tp` = {tp}")
    stages = topology.pp.size * topology.vpp
    if config.layers % stages:
        raise UserError(
            f"`model.layers`: {config.layers} cannot be divided by {stages}"
            f" (`parallel.pp` = {topology.pp.size} x `parallel.vpp` = {topology.vpp})"
        )
    if topology.sequence_parallel and config.seq_len % tp:
        raise UserError(
            f"`model.seq_len`: {config.seq_len} cannot be divided by `parallel.tp` = {tp},"
            " which `parallel.sequence_parallel` needs"
        )
