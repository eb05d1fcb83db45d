"""What a user can set about sampling, and what the sampler hands back: token ids and their log-probabilities."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from pydantic import Field, field_validator

from synpro_engine.config import Config


class SamplingConfig(Config):
    """How the next token is drawn from the model's distribution."""

    temperature: float = Field(default=1.0, ge=0.0, le=1e3)
    """Logits are divided by it, at least 0.001; 0 takes the most likely token (greedy)."""
    top_p: float = Field(default=1.0, gt=0.0, le=1.0)
    """Draw only from the fewest most likely tokens whose probabilities reach this sum; 1 keeps all. With `top_k` it
    is a share of what that keeps."""
    top_k: int | None = Field(default=None, gt=0)
    """Draw only from so many most likely tokens (and those exactly as likely as the last of them)."""
    min_p: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Draw only tokens at least so likely beside the most likely one (arXiv 2407.01082)."""
    max_new_tokens: int = Field(default=256, gt=0)
    """A completion ends here at the latest, and always where prompt and completion fill the model's `seq_len`."""

    @field_validator("temperature")
    @classmethod
    def _divides(cls, value: float) -> float:
        if 0 < value < 1e-3:
            raise ValueError("is 0 (greedy) or at least 0.001: logits divided by less are no numbers")
        return value

    @property
    def cuts(self) -> bool:
        """Whether tokens are drawn from a part of the vocabulary."""
        return self.top_p < 1.0 or self.top_k is not None or self.min_p > 0.0


class SamplerConfig(Config):
    """How much is decoded at once. No value changes what is sampled, only speed and memory."""

    max_batch: int = Field(default=64, gt=0)
    """Most sequences decoded together; a group larger than this is decoded alone."""
    cache_mib: int = Field(default=4096, gt=0)
    """Most memory for cached keys and values, in MiB. It is taken as completions grow; where it ends some wait and are
    computed again. One completion goes on whatever it takes."""
    prefill_tokens: int = Field(default=4096, gt=0)
    """Most prompt tokens (with padding) read in one forward pass."""
    speculate: int = Field(default=0, ge=0, le=64)
    """Most tokens that are guessed ahead of a completion, from what its last ones were followed by in prompt or
    completion: for operations that repeat their source, as rephrasing does. Guesses that are right cost no step of
    their own, and what is drawn does not depend on them. 0 guesses none."""


@dataclass(frozen=True, kw_only=True)
class Nuclei:
    """The ids that each token of a completion was drawn from, where top-p, top-k or min-p cut, as compressed rows.

    Row t is `ids[offsets[t]:offsets[t + 1]]`, ascending and never empty. offsets [T + 1] int64, ids [n] int32.
    """

    offsets: torch.Tensor
    ids: torch.Tensor


@dataclass(frozen=True, kw_only=True)
class Completion:
    """One sampled continuation of a prompt.

    `token_ids` includes the stop id when one was drawn (then `finished`). `logprobs` are exact under the
    distribution that was sampled: temperature, vocabulary limit and the renormalised nucleus (all 0 when
    greedy, which has no choice). `full_logprobs` are under the whole vocabulary (below the limit) at the same
    temperature (1 when greedy). Both in nats, fp32 precision. `nuclei` is None
    when nothing was cut (`SamplingConfig.cuts`, or greedy).
    """

    token_ids: list[int]
    logprobs: list[float]
    full_logprobs: list[float]
    nuclei: Nuclei | None
    finished: bool
