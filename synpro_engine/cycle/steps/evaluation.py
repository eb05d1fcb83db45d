"""The stages that measure what came out: held-out loss of the arms, influence and diversity of the texts."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import Field

from synpro_engine.backend import platform
from synpro_engine.config import Record, atomic_write_text, json_text
from synpro_engine.cycle.run_layout import EVALUATION, documents_path
from synpro_engine.cycle.settings import EvaluateSettings
from synpro_engine.cycle.steps.by_source import Sources, sources_of
from synpro_engine.cycle.steps.corpus import open_measured, open_tokenizer
from synpro_engine.cycle.steps.gauges import diversities, perplexities
from synpro_engine.cycle.steps.pieces import Pieces
from synpro_engine.cycle.steps.pretraining import held_out_batches
from synpro_engine.cycle.steps.text_influence import TextInfluences, text_influences
from synpro_engine.cycle.steps.weights import load_model
from synpro_engine.data import TokenCorpus
from synpro_engine.dist import Topology, on_main, progress
from synpro_engine.evaluate import Diversity
from synpro_engine.model.model import Model
from synpro_engine.report import HeldOutLoss
from synpro_engine.train.evaluation import held_out_loss

_PIECES = "pieces.jsonl"


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
    """Write `results.json`: `held_out` by arm and seed, `influence` and `diversity` by operation. Collective.

    A stopped or killed evaluation goes on with what it has not measured yet.

    pair: the stages of theta and its probe; None where no texts are measured. corpora: `generate` stages by operation.
    earlier: likewise of the rounds before, of whose texts diversity is measured too.
    """
    pieces = Pieces(into / _PIECES, topology)
    results = {
        "held_out": _held_out(settings, tokens, arms, pieces, topology),
        "influence": {} if pair is None else text_influences(settings, tokens, pair, corpora, pieces, topology),
    }
    every = {**earlier, **corpora}
    gauges = pieces("diversity", lambda: on_main(topology, lambda: diversities(tokens, every), label="diversity"))
    likely = perplexities(settings, tokens, every, pieces, topology)
    results["diversity"] = {name: gauge | likely.get(name, {}) for name, gauge in gauges.items()}

    def end() -> None:
        atomic_write_text(into / EVALUATION, json_text(results, indent=2) + "\n")
        (into / _PIECES).unlink(missing_ok=True)

    on_main(topology, end)


def _held_out(
    settings: EvaluateSettings, tokens: Path, arms: Sequence[Measured], pieces: Pieces, topology: Topology
) -> list[dict[str, Any]]:
    dtype = platform.resolve_dtype(settings.dtype)
    texts = open_measured(tokens, settings.held_out, open_tokenizer(tokens, topology))
    sources = on_main(
        topology, lambda: sources_of(documents_path(tokens, "validation"), texts["validation"].num_documents)
    )
    rows: list[dict[str, Any]] = []
    with progress(len(arms) * len(texts), "held-out losses", "texts", topology) as bar:
        for arm in arms:
            # One model after the other, and no name that outlives its turn: two at once may not fit.
            model = cache(partial(load_model, arm.stage, topology, dtype))
            for text, corpus in texts.items():
                name = f"loss of {arm.name}, {text}, seed {arm.seed}"
                rows.append(pieces(name, partial(_loss, settings, tokens, arm, text, corpus, sources, model)))
                bar.update()
            del model
    return rows


def _loss(
    settings: EvaluateSettings,
    tokens: Path,
    arm: Measured,
    text: str,
    corpus: TokenCorpus,
    sources: Sources | None,
    load: Callable[[], Model],
) -> dict[str, Any]:
    """A `HeldOutLoss` as plain values. Collective."""
    model, rows_at_once = load(), settings.micro_batch
    batches = held_out_batches(
        tokens, text, settings.seq_len, rows_at_once, model.topology, separate_documents=settings.separate_documents
    )
    parts = {}
    # A sum, from which the report makes bits per byte: that compares models of other tokenizers too.
    if text == "validation" and sources is not None:
        parts = sources.losses(model, batches, rows_at_once)
        nats = math.fsum(part["nats"] for part in parts.values())
    else:
        nats = held_out_loss(model, batches, micro_batch=rows_at_once) * corpus.num_learnt
    return {
        "name": arm.name,
        "text": text,
        "nats": nats,
        "tokens": corpus.num_learnt,
        "utf8_bytes": corpus.text_bytes,
        "documents": corpus.num_documents,
        "seed": arm.seed,
        "by_source": parts,
    }
