"""The list of the records that are left out, with the reasons: bounded memory, however many they are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping

from synpro_engine.config import json_text
from synpro_engine.data import BadDocument, Source, Task


class LeftOut:
    """Lists and counts records."""

    def __init__(self, write: Callable[[str], object], counts: Mapping[str, int] | None = None) -> None:
        """write: appends to the list. counts: of those that are listed already."""
        self._write = write
        self.counts: Counter[str] = Counter(counts)

    def add(self, reason: str, **line: object) -> None:
        """List a record, with what else is to be said of it."""
        self.counts[reason] += 1
        # Escaped: what is wrong with a record may be its characters.
        self._write(json_text({"reason": reason, **line}) + "\n")

    def bad(self, source: Source, bad: BadDocument) -> None:
        """List a record by its place."""
        self.add(bad.reason, file=source.path_of(bad.file), line=bad.line, why=bad.why)

    def task(self, task: Task) -> None:
        """List a task that no window holds: its place in the file is known by its id alone."""
        self.add("longer than a window", id=task.id, why="no response of it fits `model.seq_len`")

    def __str__(self) -> str:
        """The counts in a line."""
        return ", ".join(f"{count} {reason}" for reason, count in sorted(self.counts.items()))
