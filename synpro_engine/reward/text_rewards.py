"""Rewards that read nothing but the two texts: format, length, anti_copy."""

from __future__ import annotations

from collections.abc import Sequence

from synpro_engine.reward.types import Candidate
from synpro_engine.reward.words import rouge_l_precision


class FormatReward:
    """1 if the answer begins with its heading, has no other known one and could be read, else 0."""

    name = "format"
    range = (0.0, 1.0)

    def __call__(self, candidates: Sequence[Candidate]) -> list[float]:
        """Whether the answer was read and is `Parsed.exact` [C]."""
        return [float(candidate.parsed.ok and candidate.parsed.exact) for candidate in candidates]


class LengthReward:
    """1 if the text is not empty and at most 1.25 times as long as its source, in characters, else 0."""

    name = "length"
    range = (0.0, 1.0)

    def __init__(self, limit: float = 1.25) -> None:
        """`limit`: most characters per character of the source."""
        self._limit = limit

    def __call__(self, candidates: Sequence[Candidate]) -> list[float]:
        """Values [C]."""
        return [float(0 < len(c.parsed.text) <= self._limit * len(c.source)) for c in candidates]


class AntiCopyReward:
    """Minus what ROUGE-L precision exceeds 0.6 by: 0 for new words, -0.4 for a verbatim copy.

    Without it similarity, structure and length pull a generator towards copying its source.
    """

    name = "anti_copy"

    def __init__(self, allowed: float = 0.6) -> None:
        """`allowed`: share of the text's words that may follow the source's order at no cost."""
        self._allowed = allowed
        self.range = (allowed - 1.0, 0.0)

    def __call__(self, candidates: Sequence[Candidate]) -> list[float]:
        """Values [C]."""
        return [-max(0.0, rouge_l_precision(c.parsed.text, c.source) - self._allowed) for c in candidates]
