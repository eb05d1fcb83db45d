"""Which split a document belongs to: a hash of its id decides, so membership never depends on the other documents.

Knows ids only. Parts of one document (`<id>#<n>`) always share a split, or a held-out text would leak.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Literal, TypeVar

from pydantic import Field, model_validator

from synpro_engine.config import Config
from synpro_engine.data.chunking import Named, origin_id
from synpro_engine.data.hashing import stable_hash

_D = TypeVar("_D", bound=Named)
Split = Literal["train", "reference", "validation"]


class SplitConfig(Config):
    """Shares of the documents, by count; they sum to 1."""

    train: float = Field(default=0.9, gt=0, le=1)
    """Pretraining and the sources of synthesis."""
    reference: float = Field(default=0.05, ge=0, lt=1)
    """What the probe trains on and the plateau is seen on."""
    validation: float = Field(default=0.05, ge=0, lt=1)
    """Held out from everything; final losses are taken here."""

    @model_validator(mode="after")
    def _whole(self) -> SplitConfig:
        total = self.train + self.reference + self.validation
        if abs(total - 1) > 1e-6:
            raise ValueError(f"train + reference + validation must be 1, they sum to {total:g}")
        return self


def split_of(doc_id: str, config: SplitConfig, seed: int) -> Split:
    """Return the split of a document, or of a part of one, from (seed, original id) alone."""
    # Held-out shares come first, so that changing the other shares keeps validation documents where they are.
    share = stable_hash(seed, "split", origin_id(doc_id)) / 2**64
    if share < config.validation:
        return "validation"
    if share < config.validation + config.reference:
        return "reference"
    return "train"


def documents_of(split: Split, documents: Iterable[_D], config: SplitConfig, seed: int) -> Iterator[_D]:
    """Yield those of `documents` that belong to `split`, in their order."""
    return (document for document in documents if split_of(document.id, config, seed) == split)
