"""Which split a document belongs to: a hash of its text decides, so that the same text under several ids is in one.

Membership depends on the text alone: on no other document, nor on the files in which the texts are stored; a document
that is edited may move. Whoever cuts documents splits them first, or a held-out text would leak by its parts.
"""

from __future__ import annotations

import hashlib
from typing import Literal

from pydantic import Field, model_validator

from synpro_engine.config import Config
from synpro_engine.data.hashing import stable_hash

Split = Literal["train", "reference", "validation"]


class SplitConfig(Config):
    """Shares of the documents, by count; they sum to 1."""

    train: float = Field(default=0.9, gt=0, le=1)
    """Pretraining and the sources of synthesis."""
    reference: float = Field(default=0.05, ge=0, lt=1)
    """What the probe trains on and the plateau is seen on; 0 where other references serve (`references`)."""
    validation: float = Field(default=0.05, ge=0, lt=1)
    """Held out from everything; final losses are taken here."""

    @model_validator(mode="after")
    def _whole(self) -> SplitConfig:
        total = self.train + self.reference + self.validation
        if abs(total - 1) > 1e-6:
            raise ValueError(f"train + reference + validation must be 1, they sum to {total:g}")
        return self

    @property
    def used(self) -> tuple[Split, ...]:
        """The splits that must have documents."""
        return ("train", "reference", "validation") if self.reference else ("train", "validation")


def text_key(text: str) -> bytes:
    """16 bytes that two texts share when they differ in white space at most."""
    # White space only: going further (case, punctuation) would join texts that are not equal.
    return hashlib.blake2b(" ".join(text.split()).encode(), digest_size=16).digest()


def split_of(key: bytes, config: SplitConfig, seed: int) -> Split:
    """Return the split of a whole document from the `text_key` of its text and the seed alone."""
    # Held-out shares come first, so that changing the other shares keeps validation documents where they are.
    share = stable_hash(seed, "split", key.hex()) / 2**64
    if share < config.validation:
        return "validation"
    if share < config.validation + config.reference:
        return "reference"
    return "train"
