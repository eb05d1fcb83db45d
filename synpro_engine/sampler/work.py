"""A call of the sampler on its way: what is asked, what waits, what is there, and what it took."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from synpro_engine.sampler.batch import LiveBatch, LiveSequence
from synpro_engine.sampler.config import Completion
from synpro_engine.sampler.drawing import Drawer
from synpro_engine.sampler.endings import Endings
from synpro_engine.sampler.reading import PromptReader


@dataclass(kw_only=True)
class SamplerStats:
    """Work and time of one `generate` on this rank. A prompt counts once per group.

    drafted: tokens that were guessed and fed (`SamplerConfig.speculate`). kept: those of them that were drawn too.
    ended: completions. looped: those of them that were ended because they repeated themselves
    (`SamplingConfig.loop_tokens`).
    known_tokens: of prompts, not read because others that begin alike were. put_aside: how often a sequence made room
    for others. cache_bytes: memory of keys and values.
    """

    prompt_tokens: int = 0
    known_tokens: int = 0
    put_aside: int = 0
    looped: int = 0
    ended: int = 0
    cache_bytes: int = 0
    new_tokens: int = 0
    steps: int = 0
    drafted: int = 0
    kept: int = 0
    prefill_seconds: float = 0.0
    decode_seconds: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Request:
    """What `Sampler.generate` was asked; `most`: tokens that completions of each prompt may have."""

    prompts: Sequence[Sequence[int]]
    seeds: Sequence[int]
    group_size: int
    endings: Endings
    most: Sequence[int]


@dataclass(frozen=True, kw_only=True)
class Work:
    """A request on its way: indices of prompts that wait, the longest last; sequences put aside, the latest last."""

    request: Request
    drawer: Drawer
    batch: LiveBatch
    reader: PromptReader
    waiting: list[int]
    aside: list[LiveSequence]
    results: list[list[Completion | None]]
