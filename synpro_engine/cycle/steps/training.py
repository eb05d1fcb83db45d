"""What the stages that train the pretrained model read, in which shares and order, and what they ended with."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
from pydantic import Field

from synpro_engine.config import Record, UserError
from synpro_engine.cycle.run_layout import PRETRAIN, SYNTHETIC, UNIQUE
from synpro_engine.cycle.sections import ContinueConfig
from synpro_engine.cycle.settings import ArmSettings, PretrainSettings
from synpro_engine.cycle.steps.corpus import open_split
from synpro_engine.cycle.steps.curricula import curricula, write_scores
from synpro_engine.data import Curriculum, CurriculumConfig, TokenCorpus, Tokenizer, TokenLoader
from synpro_engine.dist import Topology

ORGANIC = "organic"
ALONE = " alone_loss"
"""Behind a reference's name in the metrics: its own loss, where there are several."""


class TrainingResult(Record):
    """What `TRAINING_RESULT` says of a training stage, as the report reads it."""

    step: int
    plateau: bool
    reason: str
    samples: dict[str, int]
    """Windows trained on since the first step of pretraining, by source."""
    operations: dict[str, dict[str, int]] = Field(default={})
    """Of synthetic sources (rounds): tokens trained on of each operation's texts, repetitions counted each time."""
    stitched: dict[str, int] = Field(default={})
    """Of synthetic sources with `mix.megadocs`: tokens trained on of organic text within their documents, likewise."""


class Sources(NamedTuple):
    """The text that a training stage reads, by source."""

    corpora: dict[str, TokenCorpus]
    weights: dict[str, float]
    curricula: dict[str, Curriculum]
    """Of those that are not simply shuffled in every epoch."""


@dataclass(frozen=True, kw_only=True)
class Training:
    """What a training stage is made from, beside what it is measured on."""

    name: str
    """Of the stage, below the run's directory."""
    settings: PretrainSettings | ArmSettings
    tokens: Path
    start: Path | None = None
    """The stage that it trains on from: weights, optimizer, position in the organic text."""
    order_before: int | None = None
    """The seed of the order that `start` read in, where that may be another one."""
    synthetic: Mapping[str, Path] = field(default_factory=dict)
    """What is read beside the organic text: shard artifacts by source name."""
    made: Mapping[str, Mapping[str, Path]] = field(default_factory=dict)
    """By source name, the `generate` stages of its operations."""
    arm: str | None = None
    """Whose stage it is; None: pretraining."""

    def sources(self, tokenizer: Tokenizer, stage: Path, topology: Topology | None = None) -> Sources:
        """The text that it reads.

        stage: where the scores that it goes by are. With `topology` they are put there first; collective.
        """
        corpora = {ORGANIC: open_split(self.tokens, "train", tokenizer)}
        for name, path in self.synthetic.items():
            corpora[name] = open_split(path, UNIQUE if name == UNIQUE else SYNTHETIC, tokenizer)
        configs, settings = self._curricula, self.settings
        if isinstance(settings, ArmSettings) and settings.unique_tokens is not None:
            corpora[UNIQUE] = _head(corpora[UNIQUE], settings.unique_tokens)
        if topology is not None and configs:
            scored = self.tokens.with_name(PRETRAIN)
            write_scores(stage, configs, corpora, self.synthetic, self.made, scored, topology)
        found = curricula(stage, configs, corpora, settings.seed)
        per_pass = {name: one.tokens_per_pass(np.diff(corpora[name].offsets)) for name, one in found.items()}
        continued = settings.continued if isinstance(settings, ArmSettings) else None
        # The name is that of pretraining: an arm's loader takes up the position under it, and new sources begin at 0.
        windows = settings.pretrain.max_steps * settings.pretrain.global_batch
        weights = {ORGANIC: 1.0} if continued is None else mixture(corpora, continued, per_pass, windows)
        return Sources(corpora, weights, found)

    @property
    def _curricula(self) -> dict[str, CurriculumConfig]:
        synthetic = self.settings.synthetic if isinstance(self.settings, ArmSettings) else None
        configs = {ORGANIC: self.settings.organic, **dict.fromkeys(self.synthetic, synthetic)}
        return {name: config for name, config in configs.items() if config is not None and name != UNIQUE}

    def loader(self, sources: Sources, rank: int = 0, ranks: int = 1) -> TokenLoader:
        """Deals the sources, from their first window; rank, ranks: of data parallelism."""
        settings = self.settings
        return TokenLoader(
            sources.corpora,
            sources.weights,
            settings.model.seq_len,
            settings.pretrain.global_batch,
            settings.seed,
            dp_rank=rank,
            dp_size=ranks,
            mask_repetitions=settings.pretrain.mask_repetitions,
            separate_documents=settings.pretrain.separate_documents,
            curricula=sources.curricula,
            order_before=self.order_before,
        )


def _head(corpus: TokenCorpus, tokens: int) -> TokenCorpus:
    try:
        return corpus.head(tokens)
    except UserError as error:
        raise UserError(f"`unique_tokens` of an arm: {error}") from None


def mixture(
    corpora: Mapping[str, TokenCorpus],
    config: ContinueConfig,
    per_pass: Mapping[str, float] | None = None,
    windows: int | None = None,
) -> dict[str, float]:
    """Weights of the sources: the synthetic ones share `synthetic_share` by their tokens, or count by epochs.

    Both by `recency`, and without those that newer ones replace, which stay as sources that no more is read of.
    per_pass: tokens of a pass of those that have a curriculum; an epoch of the others has each token once. windows: of
    which a round before the newest must get one, or is left out: by `recency` its share falls with each that follows.
    """
    tokens = {name: float(corpus.num_tokens) for name, corpus in corpora.items()} | dict(per_pass or {})
    rounds = [name for name in corpora if name != ORGANIC]
    read = rounds[-1:] if config.pools == "replace" else rounds
    counted = {name: tokens[name] * config.recency**age for age, name in enumerate(reversed(read))}
    weights = _weights(tokens, config, counted)
    while windows is not None and len(counted) > 1:
        least = min(read[:-1], key=lambda name: counted.get(name, math.inf))
        if weights[least] / sum(weights.values()) * windows >= 1:
            break
        del counted[least]
        weights = _weights(tokens, config, counted)
    return weights


def _weights(tokens: Mapping[str, float], config: ContinueConfig, counted: Mapping[str, float]) -> dict[str, float]:
    """Of all sources; tokens: of each. counted: those of the synthetic ones that are read, as much as they count."""
    weights = dict.fromkeys(tokens, 0.0)
    if config.synthetic_share is not None and counted:
        share, total = config.synthetic_share, sum(counted.values())
        # By tokens among themselves, so that texts of all rounds are read equally often where none counts for less.
        return weights | {ORGANIC: 1 - share} | {name: share * each / total for name, each in counted.items()}
    epochs = config.synthetic_epochs or 1.0
    return weights | {ORGANIC: tokens[ORGANIC]} | {name: each * epochs for name, each in counted.items()}
