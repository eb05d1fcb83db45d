"""What a user can set about sampling, and what the sampler hands back: token ids and their log-probabilities."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from pydantic import Field, field_validator, model_validator

from synpro_engine.config import Config

LEAST_LOOP = 12
"""Least of `SamplingConfig.loop_tokens`, where it is set."""


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
    max_new_ratio: float | None = Field(default=None, gt=0.0)
    """And at the latest where it has so many times the tokens of its prompt."""
    stop: list[str] = Field(default=[], max_length=16)
    """Strings that end a completion as soon as its text has one, also across tokens. The text that is read from it
    ends before the string; its tokens are all that were drawn, and are learnt from."""
    loop_tokens: int = Field(default=0, ge=0, le=1024)
    """End a completion whose last so many tokens are one run of them, three times at least; it counts as one that ran
    out of tokens. 0 lets it go on."""
    logit_bias: dict[str, Annotated[float, Field(ge=-100.0, le=100.0)]] = Field(default={})
    """By token id: what is added to its logit, before the temperature and every cut. The trainer's log-probabilities
    are under the same."""

    @field_validator("stop")
    @classmethod
    def _stops_are_strings(cls, value: list[str]) -> list[str]:
        if "" in value:
            raise ValueError("an empty string is in every text")
        return value

    @field_validator("loop_tokens")
    @classmethod
    def _loops_are_long(cls, value: int) -> int:
        if 0 < value < LEAST_LOOP:
            raise ValueError(f"is 0 or at least {LEAST_LOOP}: shorter repetitions are plain text")
        return value

    @field_validator("logit_bias", mode="before")
    @classmethod
    def _ids_are_numbers(cls, value: Any) -> Any:
        if not isinstance(value, Mapping):
            return value
        # Strings, as JSON's keys are: what is recorded is compared with what was read back.
        found = {str(key): bias for key, bias in value.items()}
        for key in found:
            if not (key.isascii() and key.isdigit()):
                raise ValueError(f"`{key}` is no token id")
        return found

    @property
    def biases(self) -> dict[int, float]:
        """`logit_bias` by number."""
        return {int(key): bias for key, bias in self.logit_bias.items()}

    def most_tokens(self, prompt_tokens: int) -> int:
        """Of a completion of a prompt of so many."""
        if self.max_new_ratio is None:
            return self.max_new_tokens
        return max(1, min(self.max_new_tokens, int(self.max_new_ratio * prompt_tokens)))

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
    stride: int | None = Field(default=None, gt=0, le=64)
    """Most tokens that each completion is fed before the host sees any of them. Above 1 a GPU is not waited for in
    between, and a completion that ends is noticed as much later. Left out, it is 1 on a CPU, where there is nothing to
    wait for, and on CUDA 1 to 16, more for longer completions. With `speculate` it is 1."""
    speculate: int = Field(default=0, ge=0, le=64)
    """Most tokens that are guessed ahead of a completion, from what its last ones were followed by in prompt or
    completion: for operations that repeat their source, as rephrasing does. Guesses that are right cost no step of
    their own, and what is drawn does not depend on them. 0 guesses none."""
    graphs: bool = False
    """On CUDA: record a decoding step as a graph for each of a few sizes that a batch is filled up to, and replay it.
    Memory for keys and values is then taken whole at the first call and kept. Not with `speculate`, whose steps are
    all of other shapes."""

    @model_validator(mode="after")
    def _steps_are_alike(self) -> SamplerConfig:
        if self.graphs and self.speculate:
            raise ValueError("graphs: steps with guesses (`speculate`) have too many shapes to be recorded")
        return self


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

    `token_ids` includes the stop id when one was drawn, and the tokens of the string `stopped_by` when that ended it;
    then it is `finished`. `looped`: it was ended because it repeated itself. `logprobs` are exact under the
    distribution that was sampled: bias, temperature, vocabulary limit and the renormalised nucleus (all 0 when
    greedy, which has no choice). `full_logprobs` are under the whole vocabulary (below the limit) at the same
    temperature (1 when greedy). Both in nats, fp32 precision. `nuclei` is None
    when nothing was cut (`SamplingConfig.cuts`, or greedy).
    """

    token_ids: list[int]
    logprobs: list[float]
    full_logprobs: list[float]
    nuclei: Nuclei | None
    finished: bool
    stopped_by: str | None = None
    looped: bool = False
