"""`synpro influence`: documents scored with the models of a run, or with checkpoints."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from synpro_engine.cli.commands.opening import opened_cycle
from synpro_engine.cli.commands.texts import named_texts
from synpro_engine.cli.shares import show
from synpro_engine.config import Config, UserError, load_config, verification
from synpro_engine.config.base import validate
from synpro_engine.config.integrity import Verification
from synpro_engine.cycle import ModelPair, explain_document, score_documents
from synpro_engine.cycle.run_layout import PRETRAIN
from synpro_engine.cycle.scoring.references import pair_of_checkpoint, pair_of_run
from synpro_engine.data import ReadConfig
from synpro_engine.dist import ParallelConfig, Topology, broadcast_object, launched
from synpro_engine.influence import EstimatorConfig
from synpro_engine.storage import all_at_hand


class JobConfig(Config):
    """What scoring with checkpoints takes beside them: the keys that a recipe has for the same."""

    parallel: ParallelConfig = ParallelConfig()
    verify: Verification = "once"
    influence: EstimatorConfig = EstimatorConfig()
    corpus: ReadConfig = ReadConfig()


@dataclass(frozen=True, kw_only=True)
class Weights:
    """Which weights to measure influence with, as the user named them."""

    arguments: tuple[str, ...]
    """A recipe and its overrides; with checkpoints, overrides alone."""
    directory: Path | None
    checkpoint: str | None
    """A place of either kind; so is `probe`."""
    probe: str | None
    tokenizer: Path | None
    references: tuple[str, ...] = ()
    """Files of reference tasks in place of a probe, or mappings as in a recipe's `references`."""


def influence(
    weights: Weights,
    settings: Mapping[str, object],
    documents: str,
    output: Path | None,
    explain: str | None,
    *,
    reading: Mapping[str, object],
    shares: bool,
) -> None:
    """Score documents, or explain one.

    settings, reading: what was given of the estimator's settings and of how records are read; they replace a recipe's.
    """
    if not documents:
        raise UserError("--input: the documents to score are missing")
    if output is None and explain is None:
        raise UserError("--output: give a file for the scores, or --explain ID to look at one document")
    with TemporaryDirectory(prefix="synpro-") as folder, _pair(weights, Path(folder), output) as found:
        pair, base, corpus, topology = found
        config = validate(EstimatorConfig, {**base.model_dump(), **settings}, "options")
        read = validate(ReadConfig, {**corpus.model_dump(include=set(ReadConfig.model_fields)), **reading}, "options")
        if explain is not None:
            explanation = explain_document(pair, config, documents, explain, topology, reading=read)
            if topology.is_main:
                show(explanation, sys.stdout)
        elif output is not None:
            score_documents(pair, config, documents, output, topology, reading=read, shares=shares)


@contextmanager
def _pair(
    weights: Weights, folder: Path, output: Path | None
) -> Iterator[tuple[ModelPair, EstimatorConfig, ReadConfig, Topology]]:
    """The models to measure with, the estimator's settings and how to read records, from a run or from checkpoints.

    folder: where directions of references are kept if there is no `output` to put them beside.
    """
    kept = output is not None and (output.is_file() or not output.exists())  # nothing lies beside a pipe
    place = output.with_name(output.name + ".directions") if output is not None and kept else folder / "directions"
    references = named_texts(weights.references, "--reference")
    if references and weights.probe is not None:
        raise UserError("--reference: stands in place of --probe; give one or the other")
    if weights.checkpoint is None and weights.probe is None:
        if not weights.arguments or "=" in weights.arguments[0]:
            raise UserError("influence: give a RECIPE, whose run holds the models, or --checkpoint and --probe")
        if weights.tokenizer is not None:
            raise UserError("--tokenizer: goes with --checkpoint; a run has its own")
        with opened_cycle(weights.arguments[0], weights.arguments[1:], weights.directory) as cycle:
            cycle.open_directory()
            place = broadcast_object(place, cycle.topology)  # each rank has a temporary folder of its own
            pair = pair_of_run(cycle, references, place) if references else ModelPair.of_run(cycle)
            yield pair, cycle.recipe.influence, cycle.recipe.corpus, cycle.place_of(PRETRAIN)
        return
    if weights.checkpoint is None or (weights.probe is None and not references):
        raise UserError("--checkpoint and --probe: one says theta, the other theta'; give both, or --reference")
    if weights.directory is not None or (weights.arguments and "=" not in weights.arguments[0]):
        raise UserError("--checkpoint and --probe: stand in place of a RECIPE and its --dir; give one or the other")
    config = load_config(JobConfig, {}, weights.arguments)
    with verification(config.verify), launched(config.parallel) as job:
        place = broadcast_object(place, job)
        [theta] = all_at_hand([weights.checkpoint], job)
        if weights.probe is None:
            rows = config.influence.micro_batch
            pair = pair_of_checkpoint(theta, references, place, weights.tokenizer, job, rows=rows)
        else:
            [probe] = all_at_hand([weights.probe], job)
            pair = ModelPair.of_paths(theta, probe, weights.tokenizer, job)
        yield pair, config.influence, config.corpus, job.with_whole_sequences()
