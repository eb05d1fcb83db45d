"""The stages that train the pretrained model: to the plateau, and the arms after it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
from pydantic import Field

from synpro_engine.backend import platform
from synpro_engine.config import (
    Record,
    UserError,
    atomic_write_text,
    hash_json,
    json_text,
    read_json,
    read_manifest,
    sha256_file,
)
from synpro_engine.cycle.run_layout import (
    ASKED,
    PRETRAIN,
    STITCHED,
    SYNTHETIC,
    SYNTHETIC_TOKENS,
    TRAINING_RESULT,
    UNIQUE,
    USED_SCORES,
    measured_path,
    questions_path,
    shards_path,
    task_key,
)
from synpro_engine.cycle.sections import ContinueConfig
from synpro_engine.cycle.settings import ArmSettings, PretrainSettings
from synpro_engine.cycle.stages import settings_begun_with
from synpro_engine.cycle.steps.corpus import open_measured, open_split, open_tokenizer
from synpro_engine.cycle.steps.curricula import curricula, write_scores
from synpro_engine.cycle.steps.in_run import InRunScores
from synpro_engine.cycle.steps.stitching import stretches
from synpro_engine.cycle.steps.weights import load_teachers, stage_checkpoint
from synpro_engine.data import (
    Curriculum,
    CurriculumConfig,
    EvalBatches,
    TokenCorpus,
    Tokenizer,
    TokenLoader,
    WindowSource,
    check_rows,
    eval_windows,
    open_shards,
    start_id,
)
from synpro_engine.data.choices import QuestionSet, read_questions
from synpro_engine.dist import Topology, on_main, say
from synpro_engine.influence.in_run import SCORES
from synpro_engine.model.build import build_model
from synpro_engine.storage import joined
from synpro_engine.train.checkpoint import checkpoint_extra
from synpro_engine.train.config import WeightsOf
from synpro_engine.train.trainer import pretrain
from synpro_engine.train.watcher import Evaluated, Watcher

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


def held_out_batches(
    tokens: Path, name: str, seq_len: int, rows: int, topology: Topology, *, separate_documents: bool
) -> EvalBatches:
    """This rank's batches, of `rows` windows, of held-out text by the name of its shards; each target is there once."""
    corpus, dp = open_shards(measured_path(tokens, name), open_tokenizer(tokens, topology)), topology.dp
    return EvalBatches(
        partial(
            eval_windows, corpus, seq_len,
            batch_size=rows, dp_rank=dp.rank, dp_size=dp.size, separate_documents=separate_documents,
        )
    )  # fmt: skip


def _train(
    into: Path,
    training: Training,
    sources: Sources,
    topology: Topology,
    *,
    label: str,
    start: Path | None = None,
    start_weights: WeightsOf = "raw",
    watcher: Watcher | None = None,
    evaluated: Evaluated | None = None,
) -> None:
    """Train on the weighted sources, from the checkpoint `start` or initial weights, and write the result down."""
    settings, tokens, dp = training.settings, training.tokens, topology.dp
    model, config = settings.model, settings.pretrain
    if config.checkpoint_copy is not None:  # stages' checkpoints go by steps, which the arms have in common
        copies = joined(config.checkpoint_copy, training.name)
        config = config.model_copy(update={"checkpoint_copy": copies})
    loader = training.loader(sources, dp.rank, dp.size)
    if sources.curricula:
        _check_supply(training, sources, start)
    held_out, mixed = _held_out(settings.references)
    dtype = platform.resolve_dtype(settings.dtype)
    result = pretrain(
        build_model(
            model,
            topology,
            dtype=dtype,
            # Not drawn where a checkpoint will overwrite them: initial weights of a large model take long.
            seed=settings.seed if start is None else None,
            recompute=config.recompute,
            offload_layers=config.offload_layers,
        ),
        config,
        loader,
        into,
        held_out={
            name: held_out_batches(
                tokens,
                source,
                model.seq_len,
                config.micro_batch,
                topology,
                separate_documents=config.separate_documents,
            )
            for name, source in held_out.items()
        },
        mixed=mixed,
        start=start,
        start_weights=start_weights,
        seed=settings.seed,
        label=label,
        watcher=watcher,
        evaluated=evaluated,
        questions=_questions(tokens, settings.questions, topology),
        inputs=on_main(topology, lambda: _digest(into, training, start)),
        teachers=load_teachers(config.distill, open_tokenizer(tokens, topology), model, topology, dtype),
    )
    # Without the checkpoint's path, which would make equal stages differ by where they lie.
    facts = {k: v for k, v in asdict(result).items() if k != "checkpoint"} | {"samples": loader.samples_by_source}

    def write() -> None:
        told = facts | _texts_read(training, sources, loader.samples_by_source)
        atomic_write_text(into / TRAINING_RESULT, json_text(told, indent=2) + "\n")

    on_main(topology, write)


def _held_out(references: Mapping[str, float]) -> tuple[dict[str, str], dict[str, dict[str, float]]]:
    """Sources of the held-out sets by the sets' names; and sets that are weighted means of others.

    The plateau is judged on `reference` alone: the other losses are written down, and watched for divergence.
    """
    if len(references) == 1:
        return {"reference": next(iter(references)), "validation": "validation"}, {}
    parts = {name + ALONE.removesuffix("_loss"): name for name in references}
    weights = {part: references[name] for part, name in parts.items()}
    return {"validation": "validation", **parts}, {"reference": weights}


def _digest(into: Path, training: Training, start: Path | None) -> str:
    """Of all that decides what a training stage comes to; the same where a lost run is made again, in any place.

    Not of the stages that it is made from: their records of steps and times, and manifests' versions, are others then.
    """
    tokens, settings = training.tokens, training.settings
    read = {ORGANIC: shards_path(tokens, "train")}
    read |= {
        name: shards_path(path, UNIQUE if name == UNIQUE else SYNTHETIC) for name, path in training.synthetic.items()
    }
    measured = {name: measured_path(tokens, name) for name in ("validation", *settings.references)}
    asked = [questions_path(tokens.with_name(ASKED), name) for name in settings.questions]
    decides = {
        "settings": settings_begun_with(into),
        "read": {name: read_manifest(path).content_hash for name, path in read.items()},
        "measured": {name: read_manifest(path).content_hash for name, path in measured.items()},
        "files": {path.name: sha256_file(path) for path in (*asked, *sorted((into / USED_SCORES).glob("*.npy")))},
        "start": None if start is None else read_manifest(start).content_hash,
    }
    return hash_json(decides)


def _questions(tokens: Path, names: Sequence[str], topology: Topology) -> dict[str, QuestionSet]:
    """The questions of held-out tasks, by their names in the recipe."""
    start, asked = start_id(open_tokenizer(tokens, topology)), tokens.with_name(ASKED)
    return {task_key(name).partition(".")[2]: read_questions(questions_path(asked, name), start) for name in names}


def _check_supply(training: Training, sources: Sources, start: Path | None) -> None:
    """UserError where the stage, in all of its steps, would read documents more often than they may be."""
    loader = training.loader(sources)
    if start is not None:
        loader.load_state_dict(cast("dict[str, Any]", checkpoint_extra(start)["data"]))
    loader.check_supply(training.settings.pretrain.max_steps)


def _texts_read(training: Training, sources: Sources, windows: Mapping[str, int]) -> dict[str, dict[str, Any]]:
    """Tokens that so many windows of the synthetic sources gave, by source: of each operation, of organic text."""
    operations: dict[str, dict[str, int]] = {}
    stitched: dict[str, int] = {}
    for name, shards in training.synthetic.items():
        if name == UNIQUE:  # no operation made it
            continue
        counts, corpus = read_json(shards / SYNTHETIC_TOKENS), sources.corpora[name]
        if (shards / STITCHED).exists():
            offsets, kinds = stretches(shards / STITCHED, list(counts))
        else:
            # Operation after operation, as the shards were written: by its first token each text is one of them.
            offsets = corpus.offsets
            kinds = np.searchsorted(np.cumsum(list(counts.values())), offsets[:-1], side="right")
        seq_len, seed = training.settings.model.seq_len, training.settings.seed
        source = WindowSource(name, corpus, seq_len, seed, sources.curricula.get(name))
        *given, organic = source.tokens_given(windows[name], offsets, kinds, len(counts) + 1).tolist()
        operations[name] = dict(zip(counts, given, strict=True))
        if organic:
            stitched[name] = organic
    return {"operations": operations, "stitched": stitched}


def pretrain_stage(into: Path, training: Training, topology: Topology, evaluated: Evaluated | None = None) -> None:
    """Pretrain from initial weights on organic text until the plateau or the budget; `evaluated` is told of it."""
    settings, tokens = training.settings, training.tokens
    tokenizer = open_tokenizer(tokens, topology)
    # Ids beyond the embedding's rows would be an index error on a CPU, and on a GPU an assertion of some kernel.
    check_rows(tokenizer, settings.model.vocab_size, "`model.vocab_size`")
    sources = training.sources(tokenizer, into, topology)
    references, in_run = open_measured(tokens, settings.references, tokenizer), settings.pretrain.in_run
    watcher = None
    if in_run is not None:
        watcher = InRunScores(in_run, into / SCORES, references, topology, weights=settings.references)
    _train(into, training, sources, topology, label=PRETRAIN, watcher=watcher, evaluated=evaluated)


def arm_stage(into: Path, training: Training, topology: Topology) -> None:
    """Train on from `training.start`; the synthetic text is mixed in as `continued` says, and none repeats organic."""
    assert training.start is not None
    sources = training.sources(open_tokenizer(training.tokens, topology), into, topology)
    settings, config = training.settings, training.settings.pretrain
    assert isinstance(settings, ArmSettings)
    _refuse_unread(sources.weights, config.max_steps * config.global_batch)
    small = [name for name, weight in sources.weights.items() if not weight]
    if small and settings.continued is not None and settings.continued.pools == "accumulate":
        say(topology, f"{training.name}: left out {', '.join(small)}, whose share of the text is below one window")
    before = stage_checkpoint(training.start, topology)
    label = into.name.removesuffix(".partial")
    _train(into, training, sources, topology, label=label, start=before, start_weights=settings.train_from)


def _refuse_unread(weights: Mapping[str, float], windows: int) -> None:
    """An arm too short to read a single window of some synthetic source would be the other arm under its name."""
    for name, weight in weights.items():
        share = weight / sum(weights.values())
        if name != ORGANIC and weight and share * windows < 1:
            raise UserError(
                f"`continued.steps`: of the {windows} windows of this arm, a share of {share:.2%} leaves none for the"
                f" synthetic text of {name}; raise it, `continued.synthetic_share` or `continued.synthetic_epochs`"
            )


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
