"""The organic text and the tasks from files: what was read and left out, and what held-out text others hold too."""

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
class TaskInfo:
    """Tasks of one source. Of their `tokens` the `learnt` ones are targets; the others are prompts."""

    name: str
    source: str
    tasks: int
    tokens: int
    learnt: int
    left_out: Mapping[str, int]  # records by reason
    listed_in: str


@dataclass(frozen=True, kw_only=True)
class Leak:
    """What of held-out text stands in another text too: whole documents, and n-grams."""

    held_out: str
    place: str
    documents: int
    overlap: Overlap


@dataclass(frozen=True, kw_only=True)
class CorpusInfo:
    """The organic text as it was read. `overlap` is by held-out split; `tasks` and `leaks` are of tasks from files."""

    source: str
    files: int
    splits: tuple[SplitSize, ...]
    left_out: Mapping[str, int] = field(default_factory=dict)  # records by reason
    listed_in: str = ""  # the file that lists them, as the reader of the report should see it
    files_not_read: tuple[str, ...] = ()
    overlap: Mapping[str, Overlap] = field(default_factory=dict)
    tasks: tuple[TaskInfo, ...] = ()
    leaks: tuple[Leak, ...] = ()

    @property
    def documents(self) -> int:
        """Taken into all splits."""
        return sum(split.documents for split in self.splits)
