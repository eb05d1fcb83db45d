"""The quality reward without a judge: fluency by likelihood, but neither too likely nor repetitive.

The likelihood comes in as a function.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from synpro_engine.reward.sources import SourceValues
from synpro_engine.reward.types import Candidate
from synpro_engine.reward.words import distinct_ngrams


def band_pass(nats_per_token: float, low: float, high: float, shoulder: float) -> float:
    """1 within [low, high], falling to 0 in a straight line over `shoulder` on either side; NaN for NaN."""
    if math.isnan(nats_per_token):  # `max` would make 0 of it
        return math.nan
    outside = max(low - nats_per_token, nats_per_token - high, 0.0)
    return max(0.0, 1.0 - outside / shoulder)


class QualityReward:
    """Quality(text) - quality(source), each from 0 to 1.

    Quality is the band-passed mean negative log-likelihood under an instruct model times the share of distinct
    word trigrams. Shuffled or misspelt text is too unlikely; a loop is too likely, and repeats. For a 1B instruct
    model or smaller 1.5 to 3.7 nats/token hold clean prose.
    """

    name = "quality"
    range = (-1.0, 1.0)

    def __init__(
        self,
        likelihood_of: Callable[[Sequence[str]], Sequence[float]],
        *,
        low: float = 1.5,
        high: float = 3.7,
        shoulder: float = 1.5,
    ) -> None:
        """`likelihood_of` gives each text's mean negative log-likelihood in nats per token."""
        assert low < high and shoulder > 0
        self._likelihood_of = likelihood_of
        self._band = (low, high, shoulder)
        self._of_source = SourceValues()

    def __call__(self, candidates: Sequence[Candidate]) -> list[float]:
        """Values [C]. Each source is measured once and kept."""
        new = self._of_source.unseen(c.source for c in candidates)
        texts = [c.parsed.text for c in candidates]
        values = self.quality_of([*texts, *new])
        self._of_source.store(new, values[len(texts) :])
        return [v - self._of_source[c.source] for v, c in zip(values, candidates, strict=False)]

    def quality_of(self, texts: Sequence[str]) -> list[float]:
        """Quality of each text, in [0, 1]."""
        nats = self._likelihood_of(texts) if texts else []
        return [band_pass(n, *self._band) * distinct_ngrams(t) for n, t in zip(nats, texts, strict=True)]
