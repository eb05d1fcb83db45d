"""Slices of documents, and the work list of a bulk generation: which slices and operations, in order, with seeds.

A pure function of the documents, the settings and the seed: never of ranks, time or what is already done.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable
from dataclasses import dataclass

from pydantic import Field, field_validator

from synpro_engine.config import Config, nearest
from synpro_engine.data import Document, cut_spans, stable_hash
from synpro_engine.sampler import SamplingConfig
from synpro_engine.synth.operations import OPERATIONS


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


def slice_document(document: Document, max_chars: int = 7000) -> list[Slice]:
    """Cut a document into slices of 1 to `max_chars` characters that tile it exactly.

    Cuts fall between paragraphs where possible, else between lines, sentences, words, else anywhere. A pure
    function of the text. 7,000 characters is the paper's size (arXiv 2605.17849).
    """
    return [
        Slice(doc_id=document.id, start=start, end=end, text=document.text[start:end])
        for start, end in cut_spans(document.text, max_chars)
    ]


class SliceConfig(Config):
    """Which slices of a corpus are worked on."""

    max_chars: int = Field(default=7000, gt=0)
    """Most characters of a slice."""
    min_source_chars: int = Field(default=64, ge=1)
    """Slices with fewer characters (besides white space at their ends) are left out."""
    max_slices: int | None = Field(default=None, gt=0)
    """Most slices worked on, spread over the corpus by hash; none for all."""


class GenerateConfig(SliceConfig):
    """What is generated from a corpus, and how."""

    operations: tuple[str, ...] = Field(default=("rephrase", "reformat"), min_length=1)
    """Names of the operations; each slice is given to each of them."""
    samples: int = Field(default=1, gt=0)
    """Completions per slice and operation."""
    sampling: SamplingConfig = SamplingConfig(temperature=1.0, top_p=0.9, max_new_tokens=2048)
    """How completions are drawn; what is left out when it is given takes the sampler's defaults."""
    batch_prompts: int = Field(default=16, gt=0)
    """Prompts generated together and put on disk together; a kill loses at most these."""

    @field_validator("operations")
    @classmethod
    def _check_operations(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        for name in names:
            if name not in OPERATIONS:
                raise ValueError(f"no operation `{name}`{nearest(name, OPERATIONS)}")
        if len(set(names)) < len(names):
            raise ValueError("an operation is named twice")
        return names


@dataclass(frozen=True, kw_only=True)
class WorkItem:
    """One prompt to be answered `samples` times. `key` names source, place and operation, unique in a work list."""

    slice: Slice
    operation: str
    key: str
    seed: int


def choose_slices(documents: Iterable[Document], config: SliceConfig, seed: int) -> list[Slice]:
    """The slices to work on, in the order of the corpus; of more than `max_slices` those of smallest hash."""
    pieces = (piece for document in documents for piece in slice_document(document, config.max_chars))
    # Without white space at the ends: a slice of blank lines asks a generator to make something up.
    slices = [piece for piece in pieces if len(piece.text.strip()) >= config.min_source_chars]
    if config.max_slices is None:
        return slices
    # By hash, so that the choice is spread over the corpus, and a larger one contains a smaller.
    hashes = [stable_hash(seed, "synth.select", piece.key) for piece in slices]
    chosen = heapq.nsmallest(config.max_slices, range(len(slices)), key=hashes.__getitem__)
    # Back in the corpus' order, in which batches hold slices of one document and ids are easy to follow.
    return [slices[i] for i in sorted(chosen)]


def work_list(documents: Iterable[Document], config: GenerateConfig, seed: int) -> list[WorkItem]:
    """All prompts in order: by document, slice, operation. Seeds depend on an item's own key and `seed` only."""
    items: list[WorkItem] = []
    for piece in choose_slices(documents, config, seed):
        for operation in config.operations:
            # By place and operation: a slice must not get the same random numbers for both,
            # nor others when slices are added.
            key = f"{piece.key}:{operation}"
            own_seed = stable_hash(seed, "synth.sample", key) >> 1  # below 2**63: it fits every reader's integer
            items.append(WorkItem(slice=piece, operation=operation, key=key, seed=own_seed))
    return items


def batches(items: list[WorkItem], size: int) -> list[list[WorkItem]]:
    """The work list in units of `size`. Units are fixed, so that a resumed run decodes the very same batches."""
    return [items[start : start + size] for start in range(0, len(items), size)]
