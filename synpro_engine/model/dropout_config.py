"""Settings of what is left out at random while a model trains."""

from __future__ import annotations

from pydantic import Field, model_validator

from synpro_engine.config import Config


class DropoutConfig(Config):
    """What pretraining's steps leave out at random; measurements of any kind leave out nothing.

    What is kept of it is divided by its share, so that means are as without. Every mask is a function of seed, step,
    layer and place alone (`model.dropout`): layouts, sizes of micro-batches and interruptions do not change it.
    """

    embedding: float = Field(default=0.0, ge=0, le=0.9)
    """Of the entries of token embeddings (Srivastava et al., JMLR 2014)."""
    attention: float = Field(default=0.0, ge=0, le=0.9)
    """Of the weights of attention, in plain products of one row at a time in place of a fused kernel."""
    residual: float = Field(default=0.0, ge=0, le=0.9)
    """Of the entries of what attention and MLP add to the residual stream."""
    depth: float = Field(default=0.0, ge=0, le=0.9)
    """Of the rows that the last block's attention, and of those that its MLP, adds anything to: stochastic depth (Huang
    et al., arXiv 1603.09382), row by row; block l of L has l / L of it."""
    tokens: float = Field(default=0.0, ge=0, le=0.9)
    """Of the input tokens, which `mask_token` then stands for; what is to be predicted stays."""
    mask_token: int | None = Field(default=None, ge=0)
    """Id that stands for input tokens that are left out; needed by `tokens`."""

    @model_validator(mode="after")
    def _token_to_show(self) -> DropoutConfig:
        if self.tokens and self.mask_token is None:
            raise ValueError("mask_token: is needed where tokens is above 0")
        return self

    @property
    def drops(self) -> bool:
        """Whether anything is left out at all."""
        return any((self.embedding, self.attention, self.residual, self.depth, self.tokens))
