"""The organic text: its splits, what was left out of it, and what its splits have in common."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from synpro_engine.evaluate import Overlap


@dataclass(frozen=True, kw_only=True)
class SplitSize:
    """One split: whole documents taken into it; pieces, tokens and bytes that are left after cutting and capping."""

    name: str
    documents: int
    pieces: int
    tokens: int
    utf8_bytes: int


@dataclass(frozen=True, kw_only=True)
class CorpusInfo:
    """The organic text as it was read. `overlap` is by held-out split."""

    source: str
    files: int
    splits: tuple[SplitSize, ...]
    left_out: Mapping[str, int] = field(default_factory=dict)  # records by reason
    listed_in: str = ""  # the file that lists them, as the reader of the report should see it
    files_not_read: tuple[str, ...] = ()
    overlap: Mapping[str, Overlap] = field(default_factory=dict)

    @property
    def documents(self) -> int:
        """Taken into all splits."""
        return sum(split.documents for split in self.splits)
