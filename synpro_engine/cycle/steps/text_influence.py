"""Influence of the texts that were made, beside that of the slices they were made from."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence, Set
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import Field

from synpro_engine.backend import platform
from synpro_engine.config import Record, UserError
from synpro_engine.cycle.run_layout import documents_path
from synpro_engine.cycle.settings import EvaluateSettings
from synpro_engine.cycle.steps.accepted import Provenance, sample_of
from synpro_engine.cycle.steps.corpus import open_tokenizer
from synpro_engine.cycle.steps.pieces import Pieces
from synpro_engine.cycle.steps.probe import load_probe, load_reference_directions
from synpro_engine.cycle.steps.weights import load_model
from synpro_engine.data import read_documents, start_id
from synpro_engine.dist import Topology, gather_objects, on_main, progress
from synpro_engine.influence import TextInfluence, build_estimator

_ROUNDS = 16  # micro-batches a rank measures between two looks at the wish to stop: enough to put like lengths together
_Score = tuple[float, dict[str, float]]  # the value, and that along each reference; a list of the two where it was kept


class TextInfluences(Record):
    """Influence in nats per token: of an operation's texts, and of the slices that they were made from."""

    generated: tuple[float | None, ...]
    sources: tuple[float | None, ...]
    references: dict[str, TextInfluences] = Field(default={})
    """The same along each reference alone, where there are several."""


def text_influences(
    settings: EvaluateSettings,
    tokens: Path,
    pair: tuple[Path, Path],
    corpora: Mapping[str, Path],
    pieces: Pieces,
    topology: Topology,
) -> dict[str, dict[str, Any]]:
    """`TextInfluences` of each operation as plain values, under a theta and its probe; None where no number came out.

    pair: the stages of these two. corpora: `generate` stages by operation. Collective.
    """
    # Rank 0's for all: which these are must not hang on each rank's look at the files.
    texts = on_main(topology, lambda: _texts(tokens, corpora))
    size = _ROUNDS * settings.influence.micro_batch * topology.dp.size
    parts = [
        (operation, kind, first, of[first : first + size])
        for operation, kinds in texts.items()
        for kind, of in kinds.items()
        for first in range(0, len(of), size)
    ]
    measure = cache(lambda: _measure(settings, tokens, pair, topology))
    scores: dict[str, dict[str, list[_Score]]] = {name: {kind: [] for kind in of} for name, of in texts.items()}
    with progress(sum(len(part) for *_, part in parts), "influence", "texts", topology) as bar:
        for operation, kind, first, part in parts:
            # Named with its size, which another layout or micro-batch changes.
            scores[operation][kind] += pieces(
                f"influence of {operation}, {kind} {first} + {len(part)}",
                lambda part=part: _shared(measure(), part, topology),
            )
            bar.update(len(part))
    return {operation: _by_reference(kinds) for operation, kinds in scores.items()}


def _texts(tokens: Path, corpora: Mapping[str, Path]) -> dict[str, dict[str, list[str]]]:
    """By operation the texts of a sample that were `generated`, and their `sources`."""
    accepted = {operation: sample_of(stage) for operation, stage in corpora.items()}
    # In one pass over the corpus for all operations.
    found = source_texts(tokens, {record.provenance.source for records in accepted.values() for record in records})
    return {
        operation: {
            "generated": [record.text for record in records],
            "sources": [slice_of(record.provenance, found, corpora[operation]) for record in records],
        }
        for operation, records in accepted.items()
    }


def _measure(settings: EvaluateSettings, tokens: Path, pair: tuple[Path, Path], topology: Topology) -> TextInfluence:
    dtype, tokenizer = platform.resolve_dtype(settings.dtype), open_tokenizer(tokens, topology)
    theta = load_model(pair[0], topology, dtype)
    influence = build_estimator(
        settings.influence,
        theta,
        load_probe(pair[1], theta, dtype),
        start_id=start_id(tokenizer),
        others=load_reference_directions(pair[1], theta),
    )
    return TextInfluence(influence, tokenizer.encode, same_tokenizer=False)  # what the shards will hold


def _shared(measure: TextInfluence, texts: Sequence[str], topology: Topology) -> list[_Score]:
    """Of each text; replicas take turns at them, and all know all."""
    mine = [(score.value, dict(score.others)) for score in measure.scores(texts[topology.dp.rank :: topology.dp.size])]
    # Where the texts do not divide, some ranks have one less.
    turns = itertools.zip_longest(*gather_objects(topology.dp, mine))
    return [score for turn in turns for score in turn if score is not None]


def _by_reference(kinds: Mapping[str, Sequence[_Score]]) -> dict[str, Any]:
    names = dict.fromkeys(name for scores in kinds.values() for _, others in scores for name in others)
    return {
        **{kind: [value for value, _ in scores] for kind, scores in kinds.items()},
        "references": {
            name: {kind: [others[name] for _, others in scores] for kind, scores in kinds.items()} for name in names
        },
    }


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
