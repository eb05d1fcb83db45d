"""The shape of a decoder and what a layout must divide."""

from __future__ import annotations

from math import lcm
from typing import ClassVar, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from synpro_engine.config import Config, UserError
from synpro_engine.dist import Layout

Recompute = Literal["none", "mlp", "full"]
"""What training's backward pass makes again rather than have it kept."""
Family = Literal["olmo2", "llama", "mistral", "qwen2", "qwen3"]
_LONGEST = 2**40  # tokens of a sequence


class RopeScaling(Config):
    """How Llama 3.1 and later turn positions that are longer than pretraining's (`llama3` at Hugging Face).

    Pairs whose wave is longer than original / low_freq_factor positions turn `factor` times slower, those with one
    shorter than original / high_freq_factor as before, those between in between.
    """

    factor: float = Field(ge=1)
    """How many times slower the longest waves turn."""
    low_freq_factor: float = Field(gt=0)
    """original / this: the wave, in positions, from which on all of `factor` applies."""
    high_freq_factor: float = Field(gt=0)
    """original / this: the wave, in positions, up to which nothing changes."""
    original_max_position_embeddings: int = Field(ge=1, le=_LONGEST)
    """Longest sequence of pretraining before the stretch, in tokens."""

    @model_validator(mode="after")
    def _ordered(self) -> RopeScaling:
        if self.high_freq_factor <= self.low_freq_factor:
            raise ValueError(
                f"high_freq_factor ({self.high_freq_factor}) must be above low_freq_factor ({self.low_freq_factor})"
            )
        return self


class ModelConfig(Config):
    """A decoder-only transformer with RoPE, RMSNorm and SwiGLU.

    `olmo2` normalises each sublayer's output and the full width of queries and keys (arXiv 2501.00656);
    `llama` normalises each sublayer's input (arXiv 2302.13971), `mistral` is the same under another name;
    `qwen2` adds biases to queries, keys and values (arXiv 2407.10671), `qwen3` instead normalises each head of queries
    and keys (arXiv 2505.09388).

    The bounds are far above any published model: what passes them by is a slip, and must not take hours to fail.
    """

    LATER: ClassVar[frozenset[str]] = frozenset({"published_seq_len"})

    family: Family = "olmo2"
    """Whose blocks they are: `olmo2`, `llama`, `mistral`, `qwen2` or `qwen3`."""
    layers: int = Field(ge=1, le=10_000)
    """Number of blocks."""
    d_model: int = Field(ge=1, le=2**20)
    """Width of the residual stream."""
    heads: int = Field(ge=1, le=2**16)
    """Query heads."""
    kv_heads: int = Field(ge=1, le=2**16)
    """Key and value heads; divides `heads`."""
    head_dim: int | None = Field(default=None, ge=2, le=2**16)
    """Width of one head; d_model / heads where not given."""
    ffn: int = Field(ge=1, le=2**24)
    """Width of the gated hidden layer (SwiGLU)."""
    vocab_size: int = Field(ge=2, le=2**30)
    """Rows of the embedding, padding included."""
    seq_len: int = Field(ge=1, le=_LONGEST)
    """Longest sequence in tokens."""
    rope_theta: float = Field(default=500_000.0, gt=0)
    """Base of the rotary position embedding."""
    rope_scaling: RopeScaling | None = None
    """Stretched rotary positions, as in Llama 3.1; none where not given."""
    norm_eps: float = Field(default=1e-6, gt=0)
    """Epsilon of every RMSNorm."""
    tie_embeddings: bool = False
    """Use the embedding as the output layer too."""
    init_std: float = Field(default=0.02, gt=0)
    """Standard deviation of the initial weights, truncated at three of them."""
    published_seq_len: int | None = Field(default=None, ge=1, le=_LONGEST)
    """Longest sequence of the model that this one came from, where `seq_len` is shorter; an export states it again.
    An import sets it."""

    @field_validator("kv_heads")
    @classmethod
    def _kv_heads_divide_heads(cls, value: int, info: ValidationInfo) -> int:
        # A field that failed its own check is missing here, and has its own message: this one must not add a second.
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

    # Head width is checked where it is left out too, which pydantic does not do by default.
    model_config = Config.model_config | {"validate_default": True}

    def published_as(self, seq_len: object, window: int | None = None) -> ModelConfig:
        """The same, of a model whose file says that it reads `seq_len` tokens, where that is more than it does here."""
        if type(seq_len) is not int or not 0 < seq_len <= _LONGEST:
            return self
        within = seq_len if window is None else min(seq_len, window)
        return self.model_copy(update={"published_seq_len": within}) if within > self.seq_len else self

    @property
    def head_size(self) -> int:
        """Width of one head."""
        return self.head_dim or self.d_model // self.heads

    @property
    def norm_after(self) -> bool:
        """Whether norms stand on the sublayers' outputs, and not on their inputs."""
        return self.family == "olmo2"

    @property
    def qk_norm(self) -> Literal["width", "head"] | None:
        """What one RMSNorm of queries (of keys) spans: all heads together, each head alone, or there is none."""
        return {"olmo2": "width", "qwen3": "head"}.get(self.family)  # pyright: ignore[reportReturnType]

    @property
    def qkv_bias(self) -> bool:
        """Whether queries, keys and values have biases."""
        return self.family == "qwen2"

    def parameter_count(self, *, embeddings: bool = True) -> int:
        """Number of parameters; without `embeddings` neither the embedding nor the output layer counts."""
        query, key = self.heads * self.head_size, self.kv_heads * self.head_size
        attention = 2 * self.d_model * (query + key) + (query + 2 * key if self.qkv_bias else 0)
        norms = 2 * self.d_model + {"width": query + key, "head": 2 * self.head_size, None: 0}[self.qk_norm]
        blocks = self.layers * (attention + 3 * self.d_model * self.ffn + norms) + self.d_model
        tables = (1 if self.tie_embeddings else 2) * self.vocab_size * self.d_model
        return blocks + (tables if embeddings else 0)


def check_layout(config: ModelConfig, layout: Layout, setting: str = "`model.{}`") -> None:
    """Refuse a layout that cannot divide this model; UserError names its key and, by `setting`, the model's."""
    # All that tensor parallelism cuts. Fewer key heads than ranks would need copies of them, which nothing here makes.
    for name in ("heads", "kv_heads", "ffn", "vocab_size"):
        value = getattr(config, name)
        if value % layout.tp:
            raise UserError(f"{setting.format(name)}: {value} cannot be divided by `{layout.key}.tp` = {layout.tp}")
    stages = layout.pp * layout.vpp
    if config.layers % stages:
        raise UserError(
            f"{setting.format('layers')}: {config.layers} cannot be divided by {stages}"
            f" (`{layout.key}.pp` = {layout.pp} x `{layout.key}.vpp` = {layout.vpp})"
        )
    chunks = layout.cp * lcm(2, layout.tp if layout.sequence_parallel else 1)
    if layout.cp > 1 and config.seq_len % chunks:
        raise UserError(
            f"{setting.format('seq_len')}: {config.seq_len} cannot be divided by {chunks}, as"
            f" `{layout.key}.cp` = {layout.cp} needs: each rank has two chunks of a sequence"
            + (f", which `{layout.key}.sequence_parallel` cuts again" if chunks > 2 * layout.cp else "")
        )
    if layout.sequence_parallel and config.seq_len % layout.tp:
        raise UserError(
            f"{setting.format('seq_len')}: {config.seq_len} cannot be divided by `{layout.key}.tp` = {layout.tp},"
            f" which `{layout.key}.sequence_parallel` needs"
        )
