"""Texts that the generator wrote, beside what it was given."""

from collections.abc import Mapping
from dataclasses import dataclass, field


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
