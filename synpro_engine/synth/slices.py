"""Slices of documents: how they are cut, and which of them are worked on."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from pydantic import Field

from synpro_engine.config import Config, UserError
from synpro_engine.data import Document, cut_spans, stable_hash
from synpro_engine.data.encoding import batched, in_order, usable_cpus
from synpro_engine.synth.operation import Cutter


@dataclass(frozen=True, kw_only=True)
class Slice:
    """Characters `start` to `end` (exclusive) of a document's text."""

    doc_id: str
    start: int
    end: int
    text: str

    @property
    def key(self) -> str:
        """Names the slice: document and characters."""
        return f"{self.doc_id}:{self.start}-{self.end}"


class SliceConfig(Config):
    """Which slices of a corpus are worked on."""

    max_chars: int = Field(default=7000, gt=0)
    """Most characters of a slice; 7,000 is the paper's size (arXiv 2605.17849). Cuts fall between paragraphs where
    possible, else between lines, sentences, words, else anywhere."""
    max_tokens: int | None = Field(default=None, gt=0)
    """Most tokens of a slice, by the generator's tokenizer, in place of `max_chars`. For it each character is encoded
    about twice, at half a MB a second on each CPU of rank 0: once for a tuning and once for a generation, however often
    they are interrupted."""
    overlap: float = Field(default=0.0, ge=0, lt=0.5)
    """Share of a slice that the next one begins with again, from a sentence's beginning; 0: slices tile a document."""
    min_source_chars: int = Field(default=64, ge=1)
    """Slices with fewer characters (besides white space at their ends) are left out."""
    max_slices: int | None = Field(default=None, gt=0)
    """Most slices worked on, spread over the corpus by hash; none for all."""


def slices_of(
    document: Document, config: SliceConfig, count: Callable[[str], int] | None = None, cut: Cutter | None = None
) -> Iterator[Slice]:
    """The slices of a document that are long enough, in order. count: tokens of a text, where they are what counts.

    cut: a chunk rule in place of the settings'; UserError where it names no characters of the text, or not in order.
    """
    text, by_tokens = document.text, config.max_tokens is not None
    assert count is not None or not by_tokens, "slices by tokens need a tokenizer"
    most = config.max_tokens or config.max_chars
    if cut is not None:
        spans = _checked(cut(text), document)
    else:
        spans = cut_spans(text, most, size_of=count if by_tokens else None, overlap=config.overlap)
    for start, end in spans:
        # Without white space at the ends: a slice of blank lines asks a generator to make something up.
        if len(text[start:end].strip()) >= config.min_source_chars:
            yield Slice(doc_id=document.id, start=start, end=end, text=text[start:end])


def _checked(spans: Sequence[tuple[int, int]], document: Document) -> Sequence[tuple[int, int]]:
    if not all(isinstance(span, Sequence) and len(span) == 2 and all(type(at) is int for at in span) for span in spans):
        raise UserError(f"`generate.operations`: a chunk rule gives {spans!r:.60}; spans are pairs of whole numbers")
    before = -1
    for start, end in spans:
        if not (before < start < end <= len(document.text)):
            where = f"characters {start} to {end} of {document.id!r}, which has {len(document.text)}"
            raise UserError(f"`generate.operations`: a chunk rule gives {where}; spans go up and hold some text")
        before = start
    return spans


def choose_slices(
    documents: Callable[[], Iterable[Document]],
    config: SliceConfig,
    seed: int,
    count: Callable[[str], int] | None = None,
    *,
    cut: Cutter | None = None,
    share: float = 1.0,
) -> Iterator[Slice]:
    """The slices to work on, in the order of the corpus: a share of them all, or of `max_slices`, of smallest hash.

    documents: yields them anew at each call; where slices are chosen they are read twice, and never held. cut: the
    operation's own chunk rule, if it has one.
    """

    def hash_of(piece: Slice) -> int:
        # By hash, so that the choice is spread over the corpus, and a larger one contains a smaller.
        return stable_hash(seed, "synth.select", piece.key)

    slices = partial(_slices_of_all, config=config, count=count, cut=cut)
    if config.max_slices is None and share == 1:
        return slices(documents())
    if config.max_slices is None:
        return (piece for piece in slices(documents()) if hash_of(piece) < share * 2**64)
    every = ((hash_of(piece), piece.doc_id) for piece in slices(documents()))
    smallest = heapq.nsmallest(config.max_slices, every)
    chosen = smallest[: max(1, round(share * len(smallest)))]
    # Cut once more are those alone that hold a chosen one: counting tokens takes hours where a corpus is large.
    holders = {doc_id for _, doc_id in chosen}
    again = (document for document in documents() if document.id in holders)
    return (piece for piece in slices(again) if hash_of(piece) <= chosen[-1][0])


def _slices_of_all(
    documents: Iterable[Document], config: SliceConfig, count: Callable[[str], int] | None, cut: Cutter | None
) -> Iterator[Slice]:
    """The slices of documents in order; in several threads where tokens are counted, which is all that takes long."""

    def of(some: Iterable[Document]) -> list[Slice]:
        return [piece for document in some for piece in slices_of(document, config, count, cut)]

    if config.max_tokens is None or cut is not None:  # a chunk rule is somebody's code and need not bear threads
        return (piece for document in documents for piece in of([document]))
    batches = batched(documents, lambda document: len(document.text))
    return (piece for _, pieces in in_order(batches, of, usable_cpus()) for piece in pieces)
