"""Texts that the generator wrote, beside what it was given."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

from synpro_engine.report.differences import Compared, compared


@dataclass(frozen=True, kw_only=True)
class Sample:
    """A source slice and what the generator made of it. `text` is the parsed text; the raw completion if rejected."""

    operation: str
    source_id: str
    source: str
    text: str
    accepted: bool
    reason: str = ""  # why it was rejected
    total: float | None = None
    rewards: Mapping[str, float] = field(default_factory=dict)

    @cached_property
    def compared(self) -> Compared:
        """Both texts with the words and the claims marked that the other has not."""
        return compared(self.source, self.text)

    @property
    def unsupported(self) -> str:
        """How many claims the source lacks, in words; nothing where it lacks none."""
        number = self.compared.claims
        return f"{number} claim{'s' * (number != 1)} without support in the source" if number else ""
