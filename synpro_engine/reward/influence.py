"""The influence reward: how much more training on the text would help than training on its source.

How influence is measured comes in as a function.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from synpro_engine.reward.sources import SourceValues
from synpro_engine.reward.types import Candidate

InfluenceOf = Callable[[Sequence[str], Sequence[Sequence[int] | None]], Sequence[float]]
"""I of each text. Beside each text stands what the generator's tokenizer makes of it, or None: a pretrained model whose
tokenizer encodes alike takes that."""


class InfluenceReward:
    """I(text) - I(source), I being influence in nats per token (arXiv 2605.17849).

    A text under `min_chars` scores as its source, so 0: else a few lucky words would beat a page. The source's
    value is measured once and kept: one object serves one theta and its probe.
    """

    name = "influence"

    def __init__(
        self,
        influence_of: InfluenceOf,
        *,
        min_chars: int = 500,
        clip: float | None = None,
    ) -> None:
        """`influence_of` gives I for each text; the difference is clipped to [-clip, clip] when `clip` is given."""
        self._influence_of = influence_of
        self._min_chars = min_chars
        self._bound = math.inf if clip is None else clip
        self._of_source = SourceValues()
        self.range = (-self._bound, self._bound)

    def __call__(self, candidates: Sequence[Candidate]) -> list[float]:
        """Values [C]. Measures each long enough text, and each source that was not seen before, once."""
        long = [c for c in candidates if len(c.parsed.text) >= self._min_chars]
        new = self._of_source.unseen(c.source for c in long)
        texts = [c.parsed.text for c in long]
        ids = [c.token_ids for c in long]
        values = self._influence_of([*texts, *new], [*ids, *[None] * len(new)]) if texts else []
        self._of_source.store(new, values[len(texts) :])
        of_text = iter(values)
        rewards: list[float] = []
        for candidate in candidates:
            reward = 0.0
            if len(candidate.parsed.text) >= self._min_chars:
                reward = next(of_text) - self._of_source[candidate.source]
            # `min` and `max` would make a bound of NaN.
            rewards.append(reward if math.isnan(reward) else max(-self._bound, min(self._bound, reward)))
        return rewards
