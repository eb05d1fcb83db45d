"""Training a faithfulness judge: examples turned into evidence, a head fitted and calibrated, its worth measured."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any

import numpy as np

from synpro_engine.config import UserError
from synpro_engine.data import read_documents
from synpro_engine.reward.embedder import Embedder
from synpro_engine.reward.examples import (
    CALIBRATED,
    MEASURED,
    PARTS,
    SENTENCES,
    TRUE,
    Example,
    part_of,
    planted_examples,
    with_faults,
)
from synpro_engine.reward.fitting import calibrated, fit_head
from synpro_engine.reward.head import Array, Head
from synpro_engine.reward.labelled import read_labelled
from synpro_engine.reward.measures import auc, calibration_error, share_kept
from synpro_engine.reward.planted import sentences
from synpro_engine.reward.support import evidence_of

_FEWEST = 20
FITTED = 0  # and all other parts but those two
_LOOKED_AT = 20  # documents for each slice that is wanted: a corpus may be too large to be read for this


TEXTS = ("embedded:sotu", "embedded:boolq/passages")
PAIRS = ("embedded:mrpc/pairs",)
MEASURED_ON = ("embedded:sciq/pairs", "embedded:rte/pairs")


def train_judge(
    texts: Sequence[str] | None,
    pairs: Sequence[str] | None,
    measured: Sequence[str] | None,
    *,
    slices: int,
    limit: int,
    seed: int,
) -> Head:
    """A head from faults planted in `texts` and from labelled `pairs`, measured on `measured` too; None: embedded ones.

    slices: of each of the texts; limit: pairs of each set that is measured on. UserError for what cannot be read.
    """
    given = zip((texts, pairs, measured), (TEXTS, PAIRS, MEASURED_ON), strict=True)
    texts, pairs, measured = (default if each is None else each for each, default in given)
    held_out = [pair for source in measured for pair in islice(read_labelled(source), limit)]
    examples = [example for source in texts for example in _planted(source, slices, seed)]
    for source in pairs:
        of_source = with_faults(list(read_labelled(source)), seed)
        examples += [(part_of(example.source), example) for example in of_source]
    recipe = {"texts": list(texts), "slices": slices, "pairs": list(pairs)}
    return train_head(examples, held_out, seed, recipe, Embedder())


def _planted(source: str, wanted: int, seed: int) -> Iterator[tuple[int, Example]]:
    """Examples of `wanted` slices, with the part that each one's document falls into."""
    by_part = [list[str]() for _ in range(PARTS)]
    for part, piece in islice(_slices(source, wanted, seed), wanted):
        by_part[part].append(piece)
    if wanted and not any(by_part):
        raise UserError(f"--text: {source}: no document has two sentences, so that there is nothing to plant faults in")
    for part, pieces in enumerate(by_part):
        yield from ((part, example) for example in planted_examples(pieces, seed))


def _slices(source: str, wanted: int, seed: int) -> Iterator[tuple[int, str]]:
    """Slices of prose and their documents' parts: one of each document, then a second of those that have more."""
    chance = random.Random(f"{seed} {source}")
    documents = list(dict.fromkeys(d.text for d in islice(read_documents(source), _LOOKED_AT * wanted)))
    left: list[tuple[int, list[str]]] = []
    for text in chance.sample(documents, len(documents)):
        parts = [part for paragraph in text.splitlines() for part in sentences(paragraph)]
        first = chance.randrange(max(1, len(parts) % SENTENCES))
        pieces = [parts[at : at + SENTENCES] for at in range(first, len(parts), SENTENCES)]
        whole = [" ".join(piece) for piece in pieces if len(piece) > 1]
        left.append((part_of(text), chance.sample(whole, len(whole))))
    while any(pieces for _, pieces in left):
        yield from ((part, pieces.pop()) for part, pieces in left if pieces)


def train_head(
    examples: Sequence[tuple[int, Example]],
    held_out: Sequence[Example],
    seed: int,
    recipe: dict[str, Any],
    embedder: Embedder,
) -> Head:
    """A head fitted to `examples`, calibrated on those of one part of the documents and measured on another's.

    examples: each with the part that its document falls into (`part_of`); held_out: measured on too, by kind. UserError
    where there are too few of either label to learn, calibrate and measure.
    """
    places = {MEASURED: list[int](), CALIBRATED: list[int](), FITTED: list[int]()}
    for place, (part, _) in enumerate(examples):
        places[part if part in places else FITTED].append(place)
    for of_part in places.values():
        if min(Counter(examples[i][1].label for i in of_part).get(label, 0) for label in (True, False)) < _FEWEST:
            labels = Counter(example.label for _, example in examples)
            raise UserError(
                f"train-judge: {len(examples)} examples, {labels[True]} of them true, from"
                f" {len({example.source for _, example in examples})} sources are too few; it needs {_FEWEST} true and"
                f" {_FEWEST} false ones in each sixth of its sources"
            )
    pairs = [example for _, example in examples]
    rows = evidence_of(embedder, [e.text for e in pairs], [e.source for e in pairs])
    labels, weights = np.array([float(e.label) for e in pairs]), _weights(pairs)
    measure, calibrate, fit = (np.array(of_part) for of_part in places.values())
    head = fit_head(rows[fit], labels[fit], weights[fit], seed)
    head = calibrated(head, rows[calibrate], labels[calibrate], weights[calibrate])
    p = head.probabilities(rows[measure])
    measured = {"held-out documents": figures([pairs[i] for i in measure], p)}
    for name in dict.fromkeys(example.kind for example in held_out):
        of_name = [example for example in held_out if example.kind == name]
        p = head.probabilities(evidence_of(embedder, [e.text for e in of_name], [e.source for e in of_name]))
        measured[name] = figures(of_name, p)
    return replace(head, recipe={**recipe, "seed": seed, "examples": len(fit)}, measured=measured)


def _weights(examples: Sequence[Example]) -> Array:
    """Kinds weigh the same, however many examples each has."""
    kinds = [(example.kind, example.label) for example in examples]
    counts = Counter(kinds)
    return np.array([1.0 / np.sqrt(counts[kind]) for kind in kinds])


def figures(examples: Sequence[Example], p_N: Array) -> dict[str, Any]:
    """What probabilities are worth: AUC by kind of fault, the share of true ones kept, calibration error."""
    true = np.array([example.label for example in examples])
    found: dict[str, Any] = {"true": int(true.sum()), "false": int((~true).sum()), "mean_true": _mean(p_N[true])}
    if true.all():
        return found
    kinds = np.array([example.kind for example in examples])
    found["mean_false"] = _mean(p_N[~true])
    if not true.any():
        return found
    found["auc"] = round(auc(p_N[true], p_N[~true]), 3)
    for kind in sorted({*kinds[~true]} - {TRUE}):
        # An answer stands against answers, for questions are told apart from statements too easily.
        own = true & (kinds == kind)
        planted_in = own if own.any() else true & (kinds == TRUE)
        right = p_N[planted_in if planted_in.any() else true]  # faults planted in labelled pairs have no others
        found[f"auc: {kind}"] = round(auc(right, p_N[~true & (kinds == kind)]), 3)
    threshold, kept = share_kept(p_N[true], p_N[~true])
    found |= {"threshold": round(threshold, 3), "true kept": round(kept, 3)}
    if len(of_true := sorted({*kinds[true]})) > 1:
        found |= {
            f"true kept: {kind}": round(float((p_N[true & (kinds == kind)] >= threshold).mean()), 3) for kind in of_true
        }
    found["ece"] = round(calibration_error(p_N, true.astype(float), np.ones(len(p_N))), 3)
    return found


def _mean(values: Array) -> float | None:
    return round(float(values.mean()), 3) if len(values) else None
