"""The work list of a bulk generation: which slices and operations, in order, with seeds.

A pure function of the documents, the settings and the seed: never of ranks, time or what is already done. Documents
pass by one at a time; the list itself lies on disk.
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

import numpy as np
import zstandard
from pydantic import Field, field_validator, model_validator

from synpro_engine.config import json_text, nearest
from synpro_engine.data import Document, stable_hash
from synpro_engine.sampler import SamplerConfig, SamplingConfig
from synpro_engine.synth.operations import PAPER, operation_named, split_reference
from synpro_engine.synth.served.config import ServerConfig
from synpro_engine.synth.slices import Slice, SliceConfig, choose_slices

Share = Annotated[float, Field(gt=0, le=1)]


class GenerateConfig(SliceConfig):
    """What is generated from a corpus, and how."""

    EXECUTION: ClassVar[frozenset[str]] = frozenset({"lease_minutes", "file_mib", "sampler"})

    operations: tuple[str, ...] = Field(default=PAPER, min_length=1)
    """The operations: names of those that are built in, and `path/to/file.py:NAME` for an `Operation` of that name in a
    file of your own, which is run. Each slice is given to each of them."""
    mixture: Literal["shares", "influence"] = "shares"
    """How the operations share the slices. `shares`: as `shares` says. `influence`: from the second round on by the
    reward `influence` that each earned in the round before, on average over its accepted texts: the best one works on
    `most_share` of the slices, the others on less in proportion, and none on less than `least_share`."""
    shares: dict[str, Share] = Field(default={})
    """By operation: the share of the slices (of `max_slices`, where that is given) that it works on, spread by hash; 1
    where not given."""
    least_share: Share = 0.25
    """For `mixture: influence`."""
    most_share: Share = 1.0
    """Likewise."""
    samples: int = Field(default=1, gt=0)
    """Completions per slice and operation."""
    sampling: SamplingConfig = SamplingConfig(temperature=1.0, top_p=0.9, max_new_tokens=2048)
    """How completions are drawn; what is left out when it is given takes the sampler's defaults."""
    sampler: SamplerConfig = SamplerConfig()
    join: bool = False
    """Put the accepted texts of a document's slices together again, in their order: one text for each operation and
    sample. Else each slice's is a document."""
    batch_prompts: int = Field(default=16, gt=0)
    """Prompts generated together and put on disk together; a kill loses at most these."""
    lease_minutes: float = Field(default=2, gt=0)
    """A worker that has shown no sign of life for so long is taken for dead, and others do its batch."""
    rewards: Literal["all"] | tuple[str, ...] = "all"
    """Which rewards are measured of each accepted text: `all` that its operation weighs, and questions of your own that
    none weighs; or those of them that are named here, `[]` for none. Each asks its judge or model about every text that
    is made. Filters by reward and `mixture: influence` need theirs. Where some are left out no `total` is recorded."""
    server: ServerConfig | None = None
    """A server that writes the completions from the exported weights; none for the sampler in this process."""

    def recorded(self) -> dict[str, Any]:
        """Without `server` where there is none: so it was before there could be one, and such work stays as it is.

        Operations by their names: where a file lies changes nothing, and what it holds is recorded apart.
        """
        kept = {name: value for name, value in super().recorded().items() if name != "server" or value is not None}
        for name in ("mixture", "shares", "least_share", "most_share", "rewards"):  # likewise
            if getattr(self, name) == type(self).model_fields[name].default:
                del kept[name]
        return kept | {"operations": list(self.names)}

    @property
    def names(self) -> tuple[str, ...]:
        """Of the operations; that of one in a file is what it is called there."""
        return tuple(name for name, _ in map(split_reference, self.operations))

    def measures(self, reward: str) -> bool:
        """Whether `reward` is measured of the texts of operations that weigh it."""
        return self.rewards == "all" or reward in self.rewards

    def only(self, name: str) -> GenerateConfig:
        """The same with one of its operations."""
        own = {operation: share for operation, share in self.shares.items() if operation == name}
        return self.model_copy(update={"operations": (self.operations[self.names.index(name)],), "shares": own})

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

    @model_validator(mode="after")
    def _server_can(self) -> GenerateConfig:
        for name in ("stop", "loop_tokens", "logit_bias") if self.server is not None else ():
            if getattr(self.sampling, name):
                raise ValueError(f"sampling.{name}: a server's completions cannot be held to it; leave one of both out")
        return self

    @model_validator(mode="after")
    def _shares_fit(self) -> GenerateConfig:
        for name in self.shares:
            if name not in self.names:
                raise ValueError(f"shares.{name}: is not among operations{nearest(name, self.names)}")
        if self.least_share > self.most_share:
            raise ValueError(f"least_share: {self.least_share} is more than most_share ({self.most_share})")
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


def work_items(
    documents: Callable[[], Iterable[Document]],
    config: GenerateConfig,
    seed: int,
    count: Callable[[str], int] | None = None,
) -> Iterator[WorkItem]:
    """All prompts in order: by document, slice, operation. Seeds depend on an item's own key and `seed` only."""
    by_operation = {
        name: choose_slices(
            documents, config, seed, count, cut=operation_named(name).cut, share=config.shares.get(name, 1.0)
        )
        for name in config.names
    }
    for piece, operation in _side_by_side(by_operation, documents):
        # By place and operation: a slice must not get the same random numbers for both,
        # nor others when slices are added.
        key = f"{piece.key}:{operation}"
        own_seed = stable_hash(seed, "synth.sample", key) >> 1  # below 2**63: it fits every reader's integer
        yield WorkItem(slice=piece, operation=operation, key=key, seed=own_seed)


def _side_by_side(
    by_operation: Mapping[str, Iterator[Slice]], documents: Callable[[], Iterable[Document]]
) -> Iterator[tuple[Slice, str]]:
    """Slices of several operations in one order: by document, place, operation."""
    if len(by_operation) == 1:
        yield from ((piece, name) for name, slices in by_operation.items() for piece in slices)
        return
    ahead = {name: next(slices, None) for name, slices in by_operation.items()}
    for document in documents():
        found: list[tuple[int, int, Slice, str]] = []
        for order, (name, slices) in enumerate(by_operation.items()):
            while (piece := ahead[name]) is not None and piece.doc_id == document.id:
                found.append((piece.start, order, piece, name))
                ahead[name] = next(slices, None)
        yield from ((piece, name) for _, _, piece, name in sorted(found, key=lambda one: one[:2]))


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
