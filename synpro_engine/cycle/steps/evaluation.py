"""The stages that measure what came out: held-out loss of the arms, influence and diversity of the texts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence, Set
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import Field

from synpro_engine.backend import platform
from synpro_engine.config import Record, UserError, atomic_write_text, json_text
from synpro_engine.cycle.run_layout import EVALUATION, documents_path
from synpro_engine.cycle.settings import EvaluateSettings
from synpro_engine.cycle.steps.accepted import Provenance, sample_of
from synpro_engine.cycle.steps.by_source import sources_of
from synpro_engine.cycle.steps.corpus import open_measured, open_tokenizer
from synpro_engine.cycle.steps.gauges import diversities, perplexities
from synpro_engine.cycle.steps.pretraining import held_out_batches
from synpro_engine.cycle.steps.probe import load_probe, load_reference_directions
from synpro_engine.cycle.steps.weights import load_model
from synpro_engine.data import read_documents, start_id
from synpro_engine.dist import Topology, on_main
from synpro_engine.evaluate import Diversity
from synpro_engine.influence import TextInfluence, build_estimator
from synpro_engine.report import HeldOutLoss
from synpro_engine.train.evaluation import held_out_loss


class TextInfluences(Record):
    """Influence in nats per token: of an operation's texts, and of the slices that they were made from."""

    generated: tuple[float | None, ...]
    sources: tuple[float | None, ...]
    references: dict[str, TextInfluences] = Field(default={})
    """The same along each reference alone, where there are several."""


class Results(Record):
    """What `EVALUATION` holds, as the report reads it."""

    held_out: tuple[HeldOutLoss, ...] = ()
    influence: dict[str, TextInfluences] = Field(default={})
    diversity: dict[str, Diversity] = Field(default={})


class Measured(NamedTuple):
    """A stage with weights, and what it is called; seed: None for the run's own."""

    name: str
    seed: int | None
    stage: Path


def evaluate_stage(
    into: Path,
    settings: EvaluateSettings,
    tokens: Path,
    arms: Sequence[Measured],
    pair: tuple[Path, Path] | None,
    corpora: Mapping[str, Path],
    earlier: Mapping[str, Path],
    topology: Topology,
) -> None:
    """Write `results.json`: `held_out` by arm and seed, `influence` and `diversity` by operation.

    pair: the stages of theta and its probe; None where no texts are measured. corpora: `generate` stages by operation.
    earlier: likewise of the rounds before, of whose texts diversity is measured too.
    """
    results = {
        "held_out": _held_out(settings, tokens, arms, topology),
        "influence": {} if pair is None else _influence(settings, tokens, pair, corpora, topology),
    }
    every = {**earlier, **corpora}
    gauges = on_main(topology, lambda: diversities(tokens, every), label="diversity")
    likely = perplexities(settings, tokens, every, topology)
    results["diversity"] = {name: gauge | likely.get(name, {}) for name, gauge in gauges.items()}
    on_main(topology, lambda: atomic_write_text(into / EVALUATION, json_text(results, indent=2) + "\n"))


def _held_out(
    settings: EvaluateSettings, tokens: Path, arms: Sequence[Measured], topology: Topology
) -> list[dict[str, Any]]:
    dtype, rows_at_once = platform.resolve_dtype(settings.dtype), settings.micro_batch
    texts = open_measured(tokens, settings.held_out, open_tokenizer(tokens, topology))
    sources = on_main(
        topology, lambda: sources_of(documents_path(tokens, "validation"), texts["validation"].num_documents)
    )
    rows: list[dict[str, Any]] = []
    for name, seed, stage in arms:
        # One model after the other, and no name that outlives its turn: two at once may not fit.
        model = load_model(stage, topology, dtype)
        for text, corpus in texts.items():
            batches = held_out_batches(
                tokens, text, settings.seq_len, rows_at_once, topology, separate_documents=settings.separate_documents
            )
            parts = {}
            # A sum, from which the report makes bits per byte: that compares models of other tokenizers too.
            if text == "validation" and sources is not None:
                parts = sources.losses(model, batches, rows_at_once)
                nats = math.fsum(part["nats"] for part in parts.values())
            else:
                nats = held_out_loss(model, batches, micro_batch=rows_at_once) * corpus.num_learnt
            rows.append(
                {
                    "name": name,
                    "text": text,
                    "nats": nats,
                    "tokens": corpus.num_learnt,
                    "utf8_bytes": corpus.text_bytes,
                    "documents": corpus.num_documents,
                    "seed": seed,
                    "by_source": parts,
                }
            )
        del model
    return rows


def _influence(
    settings: EvaluateSettings, tokens: Path, pair: tuple[Path, Path], corpora: Mapping[str, Path], topology: Topology
) -> dict[str, dict[str, Any]]:
    """I of accepted texts and of the slices they were made from, under the last round's theta and probe."""
    dtype, tokenizer = platform.resolve_dtype(settings.dtype), open_tokenizer(tokens, topology)
    theta = load_model(pair[0], topology, dtype)
    influence = build_estimator(
        settings.influence,
        theta,
        load_probe(pair[1], theta, dtype),
        start_id=start_id(tokenizer),
        others=load_reference_directions(pair[1], theta),
    )
    measure = TextInfluence(influence, tokenizer.encode, same_tokenizer=False)  # what the shards will hold
    # Rank 0's for all: which these are must not hang on each rank's look at the files.
    accepted = on_main(topology, lambda: {operation: sample_of(stage) for operation, stage in corpora.items()})
    # In one pass over the corpus for all operations and ranks.
    wanted = {record.provenance.source for records in accepted.values() for record in records}
    sources = on_main(topology, lambda: source_texts(tokens, wanted))
    measured = {}
    for operation, stage in corpora.items():
        records = accepted[operation]
        slices = [slice_of(record.provenance, sources, stage) for record in records]
        scores = {"generated": measure.scores([r.text for r in records]), "sources": measure.scores(slices)}
        measured[operation] = {
            **{kind: [score.value for score in of] for kind, of in scores.items()},
            "references": {
                name: {kind: [score.others[name] for score in of] for kind, of in scores.items()}
                for name in dict.fromkeys(name for of in scores.values() for score in of for name in score.others)
            },
        }
    return measured


def source_texts(tokens: Path, wanted: Set[str]) -> dict[str, str]:
    """The documents that slices were cut from, by id: those `wanted`, for there may be more than memory holds."""
    found: dict[str, str] = {}
    for document in read_documents(str(documents_path(tokens, "train"))) if wanted else ():
        if document.id in wanted:
            found[document.id] = document.text
            if len(found) == len(wanted):
                break  # the rest of the corpus may take hours
    return found


def slice_of(where: Provenance, sources: Mapping[str, str], stage: Path) -> str:
    """The text that a record of `stage` was made from; UserError where the corpus does not hold it."""
    if where.source not in sources:
        raise UserError(f"{stage}: its texts come from a document {where.source!r} that the corpus does not hold")
    return where.cut_from(sources[where.source])
