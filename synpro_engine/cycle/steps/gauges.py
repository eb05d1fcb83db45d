"""Gauges of a collapse: how varied generated texts are, and how far from organic text in distribution."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import cache, lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple

from synpro_engine.backend import platform
from synpro_engine.config import read_manifest
from synpro_engine.cycle.run_layout import PRETRAIN, SAMPLE, documents_path
from synpro_engine.cycle.settings import EvaluateSettings
from synpro_engine.cycle.steps.accepted import sample_of
from synpro_engine.cycle.steps.corpus import open_tokenizer
from synpro_engine.cycle.steps.pieces import Pieces
from synpro_engine.cycle.steps.weights import load_model
from synpro_engine.data import Document, Split, Tokenizer, cap_documents, read_documents, start_id
from synpro_engine.data.ngrams import Keys
from synpro_engine.dist import Topology, broadcast_object, gather_objects, on_main, progress
from synpro_engine.evaluate import (
    Diversity,
    common_words,
    divergences,
    measure_diversities,
    measure_diversity,
    rare_share,
)
from synpro_engine.influence import sequence_logprobs
from synpro_engine.model.model import Model

_MOST_NATS = 700.0  # of which exp is a number
_CHARS_PER_TOKEN = 16  # more than a window holds: what ranks are told of a text
_MOST_CHARS = 1 << 16
"""Of an organic document that is measured, from its beginning. Measuring takes 13 bytes for each byte of text: of 2,000
books whole it would be more than a machine may have."""


class _Organic(NamedTuple):
    """What evaluations of all arms hold texts against."""

    diversity: Diversity
    common: Keys


@lru_cache(maxsize=1)  # a process evaluates arm after arm of one run
def _organic(tokens: Path, content_hash: str) -> _Organic:
    """Of the `tokenize` stage with that content."""
    texts = [document.text for document in _organic_sample(tokens, "train", _MOST_CHARS)]
    common = common_words(texts)
    # Of the words that the common ones were counted on a tenth is rare by their definition.
    held_out = _organic_sample(tokens, "validation", _MOST_CHARS)
    rare = rare_share((document.text for document in held_out), common)
    return _Organic(replace(measure_diversity(texts), rare_words=rare), common)


def _organic_sample(tokens: Path, split: Split, most_chars: int) -> list[Document]:
    """Documents of a split, spread over all there is, each cut to its first `most_chars` characters."""
    documents = read_documents(str(documents_path(tokens, split)))
    cut = (replace(document, text=document.text[:most_chars]) for document in documents)
    return cap_documents(cut, SAMPLE, 0, lambda _: 1)


def diversities(tokens: Path, corpora: Mapping[str, Path]) -> dict[str, dict[str, Any]]:
    """Of the organic text and of generated corpora, by name; of those that accepted nothing none."""
    organic = _organic(tokens, read_manifest(tokens).content_hash)
    rows = {"organic": asdict(organic.diversity)}
    records = {name: found for name, stage in corpora.items() if (found := sample_of(stage))}
    if not records:
        return rows
    passing = (document.text for document in read_documents(str(documents_path(tokens, "train"))))
    sets = {name: [record.text for record in found] for name, found in records.items()}
    measured = measure_diversities(sets, organic=passing, common=organic.common)
    unseen = _organic_sample(tokens, "validation", _MOST_CHARS)
    held_out = _grouped((document.id, document.text) for document in unseen)
    for name, found in records.items():
        apart = divergences(_grouped((record.provenance.source, record.text) for record in found), held_out)
        kl = {} if apart is None else {"kl_to_organic": apart.to_other, "kl_from_organic": apart.from_other}
        rows[name] = asdict(replace(measured[name], **kl))
    return rows


def _grouped(texts: Iterable[tuple[str, str]]) -> list[list[str]]:
    """Texts of one document together, whichever of its pieces they are or are made of, in the order of documents."""
    groups: dict[str, list[str]] = {}
    for source, text in texts:
        groups.setdefault(source.partition("#")[0], []).append(text)
    return list(groups.values())


def perplexities(
    settings: EvaluateSettings, tokens: Path, corpora: Mapping[str, Path], pieces: Pieces, topology: Topology
) -> dict[str, dict[str, float | None]]:
    """Of accepted texts, and of as many held-out organic ones, under the model at the plateau.

    Each has its like of the other kind, and both are cut to the shorter one, for what is read further is likelier.

    corpora: by name, as those of `diversities`. Collective.
    """
    most = settings.seq_len * _CHARS_PER_TOKEN

    def read() -> tuple[dict[str, list[str]], list[str]]:
        made = {name: [one.text[:most] for one in sample_of(stage)] for name, stage in corpora.items()}
        organic = _organic_sample(tokens, "validation", most) if any(made.values()) else []
        return made, [document.text for document in organic]

    samples, organic = on_main(topology, read)
    if not any(samples.values()):
        return {}
    # One model for all rounds and arms, so that their texts can be compared: it has read organic text alone.
    dtype, tokenizer = platform.resolve_dtype(settings.dtype), open_tokenizer(tokens, topology)
    model = cache(lambda: load_model(tokens.with_name(PRETRAIN), topology, dtype))
    encoded = [ids for text in organic if (ids := tokenizer.encode(text))]

    def measure(texts: list[str]) -> dict[str, float | None]:
        own = [ids for text in texts if (ids := tokenizer.encode(text))]
        mine, theirs = _alike_long(own, encoded, settings.seq_len)
        both = ((mine, "perplexity"), (theirs, "organic_perplexity"))
        return {key: _perplexity(model(), ids, tokenizer, settings) for ids, key in both} if mine else {}

    found = dict[str, dict[str, float | None]]()
    with progress(len(samples), "perplexity", "corpora", topology) as bar:
        for name, texts in samples.items():
            found[name] = pieces(f"perplexity of {name}", partial(measure, texts))
            bar.update()
    return found


def _alike_long(
    own: Sequence[Sequence[int]], others: Sequence[Sequence[int]], most: int
) -> tuple[list[Sequence[int]], list[Sequence[int]]]:
    """Each with one of the others, which are taken in turn, and both as long as the shorter one and `most` allow."""
    pairs = [(ids, others[at % len(others)]) for at, ids in enumerate(own)] if others else []
    lengths = [min(len(ids), len(other), most) for ids, other in pairs]
    cut = [(ids[:length], other[:length]) for (ids, other), length in zip(pairs, lengths, strict=True)]
    return [mine for mine, _ in cut], [theirs for _, theirs in cut]


def _perplexity(
    model: Model, sequences: Sequence[Sequence[int]], tokenizer: Tokenizer, settings: EvaluateSettings
) -> float | None:
    """exp of the mean loss over all tokens, each sequence by itself; None where that is no finite number."""
    dp = model.topology.dp
    own = sequences[dp.rank :: dp.size]
    scored = (
        sequence_logprobs(model, own, start_id=start_id(tokenizer), micro_batch=settings.micro_batch) if own else []
    )
    parts = gather_objects(dp, [float(logprobs.sum()) for logprobs in scored])
    nats = -math.fsum(value for part in parts for value in part)
    mean = broadcast_object(nats / sum(map(len, sequences)), model.topology)
    return math.exp(mean) if mean < _MOST_NATS else None
