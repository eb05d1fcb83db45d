"""What a reward is: a named number within a range for each candidate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from synpro_engine.synth import Candidate

__all__ = ["Candidate", "Reward", "RewardFault", "RewardTable"]


class Reward(Protocol):
    """One reward. It is only shown candidates that were parsed."""

    @property
    def name(self) -> str:
        """The key of its weight."""
        ...

    @property
    def range(self) -> tuple[float, float]:
        """Least and greatest value; infinite where there is no bound."""
        ...

    def __call__(self, candidates: Sequence[Candidate]) -> list[float]:
        """One finite value within `range` for each candidate; does not depend on the other candidates.

        NaN where what it asks (a model, a judge) gave no number: it must not turn into a value.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class RewardFault:
    """A value that is not finite or outside its reward's range, for the candidate with this index."""

    index: int
    reward: str
    value: float
    range: tuple[float, float]

    def __str__(self) -> str:
        low, high = self.range
        return f"reward {self.reward} is {self.value:g}, not in its range of {low:g} to {high:g}"


@dataclass(frozen=True, kw_only=True)
class RewardTable:
    """Scores of C candidates: `total` [C] is the weighted sum, `parts` the unweighted values [C] by name.

    A part is 0 where the candidate's operation gives it no weight, and everything is 0 for an answer that was not read,
    or that lacks the exact form where that is asked for.
    """

    total: list[float]
    parts: dict[str, list[float]]
    faults: tuple[RewardFault, ...] = ()
    """The candidates' rewards that say nothing; they and the totals that they enter are NaN."""
    asked: Mapping[str, int] = field(default_factory=dict)
    """What remote judges were asked for this table, counted, as in `quality/calls`; those of one endpoint together, as
    in `quality+structure/calls`."""
    seconds: Mapping[str, float] = field(default_factory=dict)
    """What each reward took, by name."""
