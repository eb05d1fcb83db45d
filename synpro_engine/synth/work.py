"""Slices of documents, and the work list of a bulk generation: which slices and operations, in order, with seeds.

A pure function of the documents, the settings and the seed: never of ranks, time or what is already done. Documents
pass by one at a time; the list itself lies on disk.
"""

from __future__ import annotations

import heapq
import json
from array import array
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import zstandard
from pydantic import Field, field_validator, model_validator

from synpro_engine.config import Config, json_text
from synpro_engine.data import Document, cut_spans, stable_hash
from synpro_engine.sampler import SamplingConfig
from synpro_engine.synth.operations import PAPER, split_reference
from synpro_engine.synth.served.config import ServerConfig


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
    """Most tokens of a slice, by the generator's tokenizer, in place of `max_chars`."""
    overlap: float = Field(default=0.0, ge=0, lt=0.5)
    """Share of a slice that the next one begins with again, from a sentence's beginning; 0: slices tile a document."""
    min_source_chars: int = Field(default=64, ge=1)
    """Slices with fewer characters (besides white space at their ends) are left out."""
    max_slices: int | None = Field(default=None, gt=0)
    """Most slices worked on, spread over the corpus by hash; none for all."""


class GenerateConfig(SliceConfig):
    """What is generated from a corpus, and how."""

    EXECUTION: ClassVar[frozenset[str]] = frozenset({"lease_minutes", "file_mib"})

    operations: tuple[str, ...] = Field(default=PAPER, min_length=1)
    """The operations: names of those that are built in, and `path/to/file.py:NAME` for an `Operation` of that name in a
    file of your own, which is run. Each slice is given to each of them."""
    samples: int = Field(default=1, gt=0)
    """Completions per slice and operation."""
    sampling: SamplingConfig = SamplingConfig(temperature=1.0, top_p=0.9, max_new_tokens=2048)
    """How completions are drawn; what is left out when it is given takes the sampler's defaults."""
    join: bool = False
    """Put the accepted texts of a document's slices together again, in their order: one text for each operation and
    sample. Else each slice's is a document."""
    batch_prompts: int = Field(default=16, gt=0)
    """Prompts generated together and put on disk together; a kill loses at most these."""
    lease_minutes: float = Field(default=2, gt=0)
    """A worker that has shown no sign of life for so long is taken for dead, and others do its batch."""
    server: ServerConfig | None = None
    """A server that writes the completions from the exported weights; none for the sampler in this process."""

    def recorded(self) -> dict[str, Any]:
        """Without `server` where there is none: so it was before there could be one, and such work stays as it is.

        Operations by their names: where a file lies changes nothing, and what it holds is recorded apart.
        """
        kept = {name: value for name, value in super().recorded().items() if name != "server" or value is not None}
        return kept | {"operations": list(self.names)}

    @property
    def names(self) -> tuple[str, ...]:
        """Of the operations; that of one in a file is what it is called there."""
        return tuple(name for name, _ in map(split_reference, self.operations))

    def only(self, name: str) -> GenerateConfig:
        """The same with one of its operations."""
        return self.model_copy(update={"operations": (self.operations[self.names.index(name)],)})

    @property
    def files(self) -> dict[str, Path]:
        """By name: the files of the operations that are the user's own."""
        return {name: file for name, file in map(split_reference, self.operations) if file is not None}

    file_mib: float = Field(default=512, gt=0)
    """Most MiB of lines, before compression, in one file of the corpus; a longer line has a file of its own."""

    @model_validator(mode="after")
    def _joined_slices_tile(self) -> GenerateConfig:
        if self.join and self.overlap:
            raise ValueError("join: slices that overlap would say things twice; set `overlap` to 0")
        return self

    @field_validator("operations")
    @classmethod
    def _check_operations(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        known = [name for name, _ in map(split_reference, names)]
        twice = next((name for name in known if known.count(name) > 1), None)
        if twice is not None:
            raise ValueError(f"`{twice}` is named twice")
        return names


@dataclass(frozen=True, kw_only=True)
class WorkItem:
    """One prompt to be answered `samples` times. `key` names source, place and operation, unique in a work list."""

    slice: Slice
    operation: str
    key: str
    seed: int


def slices_of(document: Document, config: SliceConfig, count: Callable[[str], int] | None = None) -> Iterator[Slice]:
    """The slices of a document that are long enough, in order. count: tokens of a text, where they are what counts."""
    text, by_tokens = document.text, config.max_tokens is not None
    assert count is not None or not by_tokens, "slices by tokens need a tokenizer"
    most = config.max_tokens or config.max_chars
    for start, end in cut_spans(text, most, size_of=count if by_tokens else None, overlap=config.overlap):
        # Without white space at the ends: a slice of blank lines asks a generator to make something up.
        if len(text[start:end].strip()) >= config.min_source_chars:
            yield Slice(doc_id=document.id, start=start, end=end, text=text[start:end])


def choose_slices(
    documents: Callable[[], Iterable[Document]],
    config: SliceConfig,
    seed: int,
    count: Callable[[str], int] | None = None,
) -> Iterator[Slice]:
    """The slices to work on, in the order of the corpus; of more than `max_slices` those of smallest hash.

    documents: yields them anew at each call; they are read twice where slices are chosen, and never held.
    """

    def slices() -> Iterator[Slice]:
        return (piece for document in documents() for piece in slices_of(document, config, count))

    if config.max_slices is None:
        return slices()

    def hash_of(piece: Slice) -> int:
        # By hash, so that the choice is spread over the corpus, and a larger one contains a smaller.
        return stable_hash(seed, "synth.select", piece.key)

    smallest = heapq.nsmallest(config.max_slices, map(hash_of, slices()))
    return (piece for piece in slices() if smallest and hash_of(piece) <= smallest[-1])


def work_items(
    documents: Callable[[], Iterable[Document]],
    config: GenerateConfig,
    seed: int,
    count: Callable[[str], int] | None = None,
) -> Iterator[WorkItem]:
    """All prompts in order: by document, slice, operation. Seeds depend on an item's own key and `seed` only."""
    for piece in choose_slices(documents, config, seed, count):
        for operation in config.names:
            # By place and operation: a slice must not get the same random numbers for both,
            # nor others when slices are added.
            key = f"{piece.key}:{operation}"
            own_seed = stable_hash(seed, "synth.sample", key) >> 1  # below 2**63: it fits every reader's integer
            yield WorkItem(slice=piece, operation=operation, key=key, seed=own_seed)


class WorkList:
    """A work list on disk in units of some items, of which any can be read alone: `items.zst`, `items.ends`.

    Units are fixed, so that a resumed run decodes the very same batches.
    """

    def __init__(self, directory: Path) -> None:
        self._file, self._index = directory / "items.zst", directory / "items.ends"
        self._ends, self.prompts = np.empty(0, dtype=np.int64), 0

    def write(self, items: Iterable[WorkItem], size: int) -> None:
        """Replace it by `items`, `size` to a unit."""
        passing, ends, compressor, prompts = iter(items), array("q", [0]), zstandard.ZstdCompressor(), 0
        with self._file.open("wb") as file:
            while unit := list(islice(passing, size)):
                lines = "\n".join(json_text(asdict(item)) for item in unit)
                ends.append(ends[-1] + file.write(compressor.compress(lines.encode())))
                prompts += len(unit)
        self._index.write_bytes((array("q", [prompts]) + ends).tobytes())

    def open(self) -> Self:
        """Read where its units lie."""
        whole = np.fromfile(self._index, dtype=np.int64)
        self.prompts, self._ends = int(whole[0]), whole[1:]
        return self

    def __len__(self) -> int:
        """Number of units."""
        return max(0, len(self._ends) - 1)

    def unit(self, number: int) -> list[WorkItem]:
        """The items of one unit."""
        begin, end = self._ends[number : number + 2].tolist()
        with self._file.open("rb") as file:
            file.seek(begin)
            lines = zstandard.ZstdDecompressor().decompress(file.read(end - begin)).split(b"\n")
        return [WorkItem(**{**fields, "slice": Slice(**fields["slice"])}) for fields in map(json.loads, lines)]
