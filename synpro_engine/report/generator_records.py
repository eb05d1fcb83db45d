"""What a report shows of the generator: how it was tuned, what it wrote, and what that is worth.

Plain frozen records; lengths in tokens. Knows no file, no model and no stage of the cycle.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from synpro_engine.evaluate import Diversity


@dataclass(frozen=True, kw_only=True)
class InfluenceValues:
    """Influence, in nats per token, of source slices and of texts made from them.

    By how much the loss of a text falls when the weights move as the reference wants: by a probe's walk, or, `per_nat`,
    along a step that would lower the loss of the reference by one nat per token, to first order.
    """

    operation: str
    per_nat: bool
    sources: tuple[float, ...]
    generated: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class RewardCurves:
    """Means over the completions of each tuning step, of one operation's generator."""

    operation: str
    steps: tuple[int, ...]
    total: tuple[float, ...]
    parts: Mapping[str, tuple[float, ...]]  # before weighting
    weights: Mapping[str, float] = field(default_factory=dict)
    kl: tuple[float, ...] = ()  # k3 estimate to the reference policy, nats per token
    lengths: tuple[float, ...] = ()  # tokens per completion


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


@dataclass(frozen=True, kw_only=True)
class YieldRow:
    """How many completions of an operation became documents, how many were rejected and what was cut, by cause."""

    operation: str
    accepted: int
    rejected: Mapping[str, int] = field(default_factory=dict)
    cut: Mapping[str, int] = field(default_factory=dict)  # characters of accepted answers that are not in the texts

    @property
    def generated(self) -> int:
        """Completions sampled, accepted or not."""
        return self.accepted + sum(self.rejected.values())


@dataclass(frozen=True, kw_only=True)
class DiversityRow:
    """Diversity of one set of texts, under the name the table shows."""

    name: str
    measures: Diversity
