"""Influence of the documents that pretraining scored while it read them, and of generated texts and their sources."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from statistics import median

import numpy as np

from synpro_engine.config import Record, UserError
from synpro_engine.cycle.run_layout import PRETRAIN, TOKENIZE, documents_path
from synpro_engine.cycle.steps.in_run import DIRECTION
from synpro_engine.cycle.summaries.finished_run import FinishedRun
from synpro_engine.data import read_documents
from synpro_engine.influence import DocumentScore, ScoreRecord, by_document, read_scores
from synpro_engine.influence.in_run import SCORES
from synpro_engine.report import Influence, InRunInfluence, OperationInfluence, ScoredDocument

_LISTED, _WORDS = 5, 14  # documents at either end of the ranking, and words shown of each
_FEWEST = 10  # documents for which a rank correlation is worth a number
_TENTHS = (0.1, 0.5, 0.9)


class _Timed(Record):
    seconds: float
    scored: bool
    direction_seconds: float


def influence(run: FinishedRun) -> Influence:
    """What there is of both."""
    return Influence(in_run=_in_run(run), operations=_operations(run))


def _operations(run: FinishedRun) -> tuple[OperationInfluence, ...]:
    """Influence of accepted texts and their sources, by operation."""
    per_nat = run.recipe.probe.kind == "next_step"
    return tuple(
        OperationInfluence(
            operation=name if arm is None else run.of_arm(name, arm),
            per_nat=per_nat,
            sources=_numbers(texts.sources),
            generated=_numbers(texts.generated),
            references={
                reference: (_median(along.sources), _median(along.generated))
                for reference, along in texts.references.items()
            },
        )
        for arm, results in run.results().items()
        for name, texts in results.influence.items()
        if _numbers(texts.generated)
    )


def _numbers(values: Sequence[float | None]) -> tuple[float, ...]:
    """Those that were finite; JSON has null for the others."""
    return tuple(value for value in values if value is not None)


def _median(values: Sequence[float | None]) -> float | None:
    return median(_numbers(values)) if _numbers(values) else None


def _in_run(run: FinishedRun) -> InRunInfluence | None:
    """What pretraining scored; None where it did not, or has not ended."""
    config, times = run.recipe.pretrain.in_run, run.metrics(PRETRAIN, "in_run", _Timed)
    scored = [record.seconds for record in times if record.scored]
    if config is None or not scored:
        return None
    path = run.directory / PRETRAIN / SCORES
    if next(read_scores(path), None) is None:
        raise UserError(f"{path}: is empty, though {len(scored)} steps were scored")
    documents, bands = by_document(path, DIRECTION), _bands(path)
    if not bands:  # none of the values was finite
        return None
    steps, least = tuple(bands), run.recipe.model.seq_len
    ranked = sorted((entry for entry in documents.items() if entry[1].tokens >= least), key=lambda e: e[1].value)
    # So that no document stands among the best and the worst.
    listed = min(_LISTED, len(ranked) // 2)
    agreement, both = agreement_of_halves(documents, by_document(path, DIRECTION, since=steps[(len(steps) - 1) // 2]))
    unscored = [record.seconds for record in times if not record.scored]
    renewals = [record.direction_seconds for record in times if record.direction_seconds]
    return InRunInfluence(
        per_nat=config.direction == "next_step",
        steps=steps,
        trained_steps=len(times),
        low=tuple(band[0] for band in bands.values()),
        median=tuple(band[1] for band in bands.values()),
        high=tuple(band[2] for band in bands.values()),
        documents=tuple(score.value for score in documents.values()),
        least_tokens=least,
        best=_named(run, ranked[::-1][:listed]),
        worst=_named(run, ranked[:listed]),
        agreement=agreement,
        agreeing_documents=both,
        unscored_seconds=median(unscored) if unscored else None,
        scored_seconds=median(scored),
        renewals=len(renewals),
        renewal_seconds=sum(renewals),
    )


def _bands(path: Path) -> dict[int, tuple[float, ...]]:
    """By scored step: the values that a tenth, half and nine tenths of its tokens lie below."""
    bands = {}
    for step, records in groupby(read_scores(path), key=lambda record: record.step):
        band = _quantiles(list(records))
        if band:
            bands[step] = band
    return bands


def _quantiles(records: Sequence[ScoreRecord]) -> tuple[float, ...]:
    pairs = sorted((value, r.tokens) for r in records if (value := r.scores[DIRECTION]) is not None and r.tokens)
    if not pairs:
        return ()
    below = np.cumsum([tokens for _, tokens in pairs])
    return tuple(pairs[int(np.searchsorted(below, share * below[-1]))][0] for share in _TENTHS)


def agreement_of_halves(
    whole: Mapping[str, DocumentScore], late: Mapping[str, DocumentScore]
) -> tuple[float | None, int]:
    """Spearman's rank correlation of documents' means early and late, and how many stand in both; None for few.

    whole: over all steps; late: over the later ones, so that the rest is early.
    """
    pairs = []
    for key, score in late.items():
        tokens = whole[key].tokens - score.tokens
        if tokens:
            # Means weighted by tokens can be taken apart again, so the log is read twice and not kept.
            early = (whole[key].value * whole[key].tokens - score.value * score.tokens) / tokens
            pairs.append((early, score.value))
    if len(pairs) < _FEWEST:
        return None, len(pairs)
    ranks = np.argsort(np.argsort(np.asarray(pairs), axis=0), axis=0)
    return float(np.corrcoef(ranks, rowvar=False)[0, 1]), len(pairs)


def _named(run: FinishedRun, ranked: Sequence[tuple[str, DocumentScore]]) -> tuple[ScoredDocument, ...]:
    """With the first words of each document."""
    wanted, words = {key for key, _ in ranked}, {}
    for document in read_documents(str(documents_path(run.directory / TOKENIZE, "train"))):
        if document.id in wanted:
            words[document.id] = " ".join(document.text.split()[:_WORDS])
    if len(words) < len(wanted):
        raise UserError(f"{run.directory / PRETRAIN / SCORES}: scores documents that the training split does not hold")
    return tuple(
        ScoredDocument(id=key, words=words[key], value=score.value, tokens=score.tokens) for key, score in ranked
    )
