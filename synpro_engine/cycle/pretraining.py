"""The stages that train the pretrained model: to the plateau, and the two arms after it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from synpro_engine.backend import platform
from synpro_engine.config import Record, UserError, atomic_write_text, json_text
from synpro_engine.cycle.corpus import open_split, open_tokenizer
from synpro_engine.cycle.in_run import InRunScores
from synpro_engine.cycle.recipe import ContinueConfig, Recipe
from synpro_engine.cycle.weights import stage_checkpoint
from synpro_engine.data import Batch, SourceConfig, TokenCorpus, TokenLoader, eval_windows, mixture_weights
from synpro_engine.dist import Topology, on_main
from synpro_engine.influence.in_run import SCORES
from synpro_engine.model.build import build_model
from synpro_engine.model.model import Model
from synpro_engine.train.config import TrainConfig
from synpro_engine.train.run import PretrainResult
from synpro_engine.train.trainer import pretrain

ORGANIC = "organic"
RESULT = "result.json"


class TrainingResult(Record):
    """What `RESULT` says of a training stage, as the report reads it."""

    step: int
    plateau: bool
    reason: str
    samples: dict[str, int]
    """Windows trained on since the first step of pretraining, by source."""


def new_model(recipe: Recipe, topology: Topology, *, seed: int | None) -> Model:
    """The pretrained model's shape on this layout; with a seed, at its initial weights."""
    return build_model(recipe.model, topology, dtype=platform.resolve_dtype(recipe.dtype), seed=seed)


def loader_of(
    recipe: Recipe, corpora: Mapping[str, TokenCorpus], weights: Mapping[str, float], batch: int, topology: Topology
) -> TokenLoader:
    """This rank's loader of weighted sources, `batch` windows a step over all ranks."""
    return TokenLoader(
        corpora,
        weights,
        recipe.model.seq_len,
        batch,
        recipe.seed,
        dp_rank=topology.dp.rank,
        dp_size=topology.dp.size,
        mask_repetitions=recipe.corpus.mask_repetitions,
    )


def held_out_batches(recipe: Recipe, tokens: Path, name: str, topology: Topology) -> list[Batch]:
    """This rank's batches of a held-out split, each token a target once."""
    corpus = open_split(tokens, name, open_tokenizer(tokens, topology))
    dp = topology.dp
    batch = recipe.pretrain.micro_batch
    return list(eval_windows(corpus, recipe.model.seq_len, batch_size=batch, dp_rank=dp.rank, dp_size=dp.size))


def _held_out(recipe: Recipe, tokens: Path, topology: Topology) -> dict[str, list[Batch]]:
    return {name: held_out_batches(recipe, tokens, name, topology) for name in ("reference", "validation")}


def _write_result(into: Path, result: PretrainResult, topology: Topology, extra: Mapping[str, object]) -> None:
    facts = {k: v for k, v in asdict(result).items() if k != "checkpoint"} | dict(extra)
    on_main(topology, lambda: atomic_write_text(into / RESULT, json_text(facts, indent=2) + "\n"))


def pretrain_stage(into: Path, recipe: Recipe, tokens: Path, topology: Topology) -> None:
    """Pretrain from initial weights on organic text until the plateau or the budget."""
    tokenizer = open_tokenizer(tokens, topology)
    corpus, reference = (open_split(tokens, split, tokenizer) for split in ("train", "reference"))
    loader = loader_of(recipe, {ORGANIC: corpus}, {ORGANIC: 1.0}, recipe.pretrain.global_batch, topology)
    in_run = recipe.pretrain.in_run
    result = pretrain(
        new_model(recipe, topology, seed=recipe.seed),
        recipe.pretrain,
        loader,
        into,
        held_out=_held_out(recipe, tokens, topology),
        seed=recipe.seed,
        label="pretrain",
        watcher=None if in_run is None else InRunScores(in_run, into / SCORES, loader, reference, topology),
    )
    _write_result(into, result, topology, {"samples": loader.samples_by_source})


def arm_config(recipe: Recipe, steps: int) -> TrainConfig:
    """Settings of an arm: pretraining's, for a fixed number of steps; nothing is scored on the way.

    A decaying schedule goes on where it was.
    """
    return recipe.pretrain.model_copy(update={"max_steps": steps, "plateau": None, "in_run": None})


def arm_stage(
    into: Path, recipe: Recipe, tokens: Path, start: Path, synthetic: Mapping[str, Path], steps: int, topology: Topology
) -> None:
    """Train on from `start` (weights, optimizer, position in the organic text) for `steps` steps.

    synthetic: shard artifacts by source name, mixed in as `continued` says; none repeats organic text.
    """
    tokenizer = open_tokenizer(tokens, topology)
    corpora = {ORGANIC: open_split(tokens, "train", tokenizer)}
    corpora |= {name: open_split(path, "synthetic", tokenizer) for name, path in synthetic.items()}
    weights = mixture(corpora, recipe.continued)
    _refuse_unread(weights, steps * recipe.pretrain.global_batch)
    loader = loader_of(recipe, corpora, weights, recipe.pretrain.global_batch, topology)
    before = stage_checkpoint(start, topology)
    result = pretrain(
        new_model(recipe, topology, seed=None),
        arm_config(recipe, steps),
        loader,
        into,
        held_out=_held_out(recipe, tokens, topology),
        start=before,
        seed=recipe.seed,
        label=into.name.removesuffix(".partial"),
    )
    _write_result(into, result, topology, {"samples": loader.samples_by_source})


def _refuse_unread(weights: Mapping[str, float], windows: int) -> None:
    """An arm too short to read a single window of some synthetic source would be the other arm under its name."""
    for name, weight in weights.items():
        share = weight / sum(weights.values())
        if name != ORGANIC and share * windows < 1:
            raise UserError(
                f"`continued.steps`: of the {windows} windows of this arm, a share of {share:.2%} leaves none for the"
                f" synthetic text of {name}; raise it, `continued.synthetic_share` or `continued.synthetic_epochs`"
            )


def mixture(corpora: Mapping[str, TokenCorpus], config: ContinueConfig) -> dict[str, float]:
    """Weights of the sources: the synthetic ones share `synthetic_share` by their tokens, or count by epochs."""
    synthetic = {name: corpus.num_tokens for name, corpus in corpora.items() if name != ORGANIC}
    if config.synthetic_share is not None and synthetic:
        share, total = config.synthetic_share, sum(synthetic.values())
        return {ORGANIC: 1 - share} | {name: share * tokens / total for name, tokens in synthetic.items()}
    epochs = {name: (config.synthetic_epochs or 1.0) if name in synthetic else 1.0 for name in corpora}
    return mixture_weights([SourceConfig(name=name, path=name, epochs=epochs[name]) for name in corpora], corpora)
