"""The held-out loss by what documents are from: their folder below the corpus' root, or what a field of theirs says."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from synpro_engine.config import UserError
from synpro_engine.data.batch import Batch
from synpro_engine.data.writer import written_documents
from synpro_engine.model.model import Model
from synpro_engine.report import SourceLoss
from synpro_engine.train.evaluation import held_out_nats

MOST_SOURCES = 12
"""Told apart: those with the most text; all others are one."""
UNNAMED, OTHERS = "(no source)", "(others)"


@dataclass(frozen=True)
class Sources:
    """What the documents of a split are from, in the order of its shards."""

    names: tuple[str, ...]
    kind_D: NDArray[np.int64]
    """Of each document its place among the names."""
    utf8_bytes: tuple[int, ...]
    documents: tuple[int, ...]

    def losses(self, model: Model, batches: Iterable[Batch], micro_batch: int) -> dict[str, dict[str, Any]]:
        """A `SourceLoss` of each source, as plain values. Collective."""
        sums = held_out_nats(model, batches, self.kind_D, len(self.names), micro_batch=micro_batch)
        sizes = zip(self.names, sums, self.utf8_bytes, self.documents, strict=True)
        return {
            name: asdict(SourceLoss(nats=nats, tokens=tokens, utf8_bytes=size, documents=count))
            for name, (nats, tokens), size, count in sizes
        }


def sources_of(path: Path, tokenized: int) -> Sources | None:
    """The sources of the documents of a split that was written to `path`; None where there are not two.

    Beyond `MOST_SOURCES` those with the least text are one. tokenized: documents of the split's shards, whose numbers
    losses go by. UserError where `path` has not as many.
    """
    places: dict[str, int] = {}
    found, sizes = list[int](), Counter[int]()
    for _, document in written_documents(path):
        place = places.setdefault(UNNAMED if document.source is None else document.source, len(places))
        found.append(place)
        sizes[place] += len(document.text.encode())
    if len(places) < 2:
        return None
    if len(found) != tokenized:
        raise UserError(f"{path}: has {len(found)} documents, and the shards beside it {tokenized}")
    names = list(places)
    order = sorted(sizes, key=lambda place: (-sizes[place], names[place]))
    kept = order if len(order) <= MOST_SOURCES else order[: MOST_SOURCES - 1]
    kind_P = np.full(len(places), len(kept))
    kind_P[kept] = np.arange(len(kept))
    rest = [sum(sizes[place] for place in order[len(kept) :])] if len(kept) < len(order) else []
    kind_D = kind_P[np.array(found)]
    return Sources(
        names=(*(names[place] for place in kept), *([OTHERS] if rest else [])),
        kind_D=kind_D,
        utf8_bytes=(*(sizes[place] for place in kept), *rest),
        documents=tuple(np.bincount(kind_D).tolist()),
    )
