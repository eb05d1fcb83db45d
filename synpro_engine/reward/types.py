"""What a reward is: a named number within a range for each candidate.

Knows the shapes that rewards and the trainer share; computes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from synpro_engine.synth import Candidate

__all__ = ["Candidate", "Reward", "RewardTable"]


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
        """One finite value within `range` for each candidate; does not depend on the other candidates."""
        ...


@dataclass(frozen=True, kw_only=True)
class RewardTable:
    """Scores of C candidates: `total` [C] is the weighted sum, `parts` the unweighted values [C] by name.

    A part is 0 where the candidate's operation gives it no weight, and everything is 0 for an answer that was not read,
    or that lacks the exact form where that is asked for.
    """

    total: list[float]
    parts: dict[str, list[float]]
