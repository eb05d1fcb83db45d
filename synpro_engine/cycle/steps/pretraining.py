"""The stages that train the pretrained model: to the plateau, and the arms after it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np

from synpro_engine.backend import platform
from synpro_engine.config import (
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
from synpro_engine.cycle.settings import ArmSettings
from synpro_engine.cycle.stages import settings_begun_with
from synpro_engine.cycle.steps.corpus import open_measured, open_tokenizer
from synpro_engine.cycle.steps.in_run import InRunScores
from synpro_engine.cycle.steps.stitching import stretches
from synpro_engine.cycle.steps.training import ALONE, ORGANIC, Sources, Training
from synpro_engine.cycle.steps.weights import load_teachers, stage_checkpoint
from synpro_engine.data import EvalBatches, WindowSource, check_rows, eval_windows, open_shards, start_id
from synpro_engine.data.choices import QuestionSet, read_questions
from synpro_engine.dist import Topology, on_main, say
from synpro_engine.influence.in_run import SCORES
from synpro_engine.model.build import build_model
from synpro_engine.storage import joined
from synpro_engine.train.checkpoint import checkpoint_extra
from synpro_engine.train.config import WeightsOf
from synpro_engine.train.trainer import pretrain
from synpro_engine.train.watcher import Evaluated, Watcher


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
    model, config, dtype = settings.model, settings.pretrain, platform.resolve_dtype(settings.dtype)
    if config.checkpoint_copy is not None:  # stages' checkpoints go by steps, which the arms have in common
        copies = joined(config.checkpoint_copy, training.name)
        config = config.model_copy(update={"checkpoint_copy": copies})
    loader = training.loader(sources, dp.rank, dp.size)
    if sources.curricula:
        _check_supply(training, sources, start)
    batches = partial(
        held_out_batches,
        tokens,
        seq_len=model.seq_len,
        rows=config.micro_batch,
        topology=topology,
        separate_documents=config.separate_documents,
    )
    held_out, mixed = _held_out(settings.references)
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
        held_out={name: batches(source) for name, source in held_out.items()},
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
