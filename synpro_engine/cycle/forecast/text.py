"""The organic text by its size: tokens, bytes on disk, and how often it may be read."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

from synpro_engine.config import UserError
from synpro_engine.cycle.recipe import Recipe
from synpro_engine.data import find_files, find_source
from synpro_engine.storage import RemoteFile

CHARS_PER_TOKEN = 4.3
"""Of English prose in a vocabulary of 100,000; with a small one tokens are shorter, and the corpus is more of them."""
_COMPRESSION = 3.0
"""Of text by zstd and gzip."""
TEXT_BYTES = CHARS_PER_TOKEN / _COMPRESSION
"""Of a token's text on disk."""


def id_bytes(vocab_size: int) -> int:
    """Of a token in a shard, as Megatron's `DType.optimal_dtype` decides."""
    return 2 if vocab_size < 65_500 else 4


def train_tokens(recipe: Recipe) -> tuple[float | None, list[str]]:
    """The cap, or what the files' sizes suggest, whichever is less; and what to know of the number."""
    corpus, cap = recipe.corpus, recipe.corpus.max_train_tokens
    try:
        if corpus.shards is None:
            tokens = sum(map(_characters, find_source(corpus.source).files)) / CHARS_PER_TOKEN
        else:
            shards = (file.tokens for _, file in find_files(corpus.shard_paths).named)
            tokens = sum(file.stat().st_size for file in shards) / id_bytes(recipe.model.vocab_size)
    except (UserError, OSError) as error:  # a link that leads nowhere
        known = "taken to be the cap" if cap is not None else "not known without `corpus.max_train_tokens`"
        return cap, [f"{error}: the size of the corpus is {known}"]
    tokens *= corpus.split.train
    if cap is not None and cap <= tokens:
        return cap, []
    return tokens, ["the size of the corpus is guessed from the sizes of its files"]


def _characters(file: Path | RemoteFile) -> float:
    """About how many characters of text a corpus file holds."""
    plain = file.suffix.lower() in (".jsonl", ".ndjson", ".json", ".txt", ".arrow")
    return file.stat().st_size * (1.0 if plain else _COMPRESSION)


def read_too_often(recipe: Recipe, tokens: float | None) -> Iterator[str]:
    """What is wrong where organic documents may not be read as often as the steps ask for; tokens: of all of them."""
    organic = recipe.mix.organic
    if organic is None or organic.max_epochs is None or tokens is None:
        return
    each = organic.repeats if isinstance(organic.repeats, tuple) else (organic.repeats,)
    step = recipe.pretrain.global_batch * recipe.model.seq_len
    # The arm that repeats organic text reads most of it.
    wanted, passes = recipe.continued.steps * recipe.rounds * step, 0
    if recipe.mix.in_pretraining is None:  # which reads all documents alike, and each pass that it begins counts
        passes = math.ceil(recipe.pretrain.max_steps * step / tokens)
    else:
        wanted += recipe.pretrain.max_steps * step
    there = tokens * max(0, organic.max_epochs - passes) * sum(one > 0 for one in each) / len(each)
    if wanted > there:
        behind = f" behind up to {passes} passes of pretraining" if passes else " in all"
        yield (
            f"`mix.organic.max_epochs`: {organic.max_epochs} allow {there:,.0f} organic tokens{behind}, and"
            f" training asks for {wanted:,.0f}"
        )
