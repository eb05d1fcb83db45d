"""Rewards for saying what the source says, by matching token embeddings and checking numbers and names.

The embeddings come in from an `Embedder`. Matching alone takes a contradiction with one changed number for a
near-perfect paraphrase, hence the second check, and for entries a head that was trained to weigh both.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

from synpro_engine.reward.embedder import Match, greedy_match
from synpro_engine.reward.head import Head, embedded_head
from synpro_engine.reward.support import TokenPlaces, evidence_of
from synpro_engine.reward.types import Candidate
from synpro_engine.reward.words import unsupported_share


class TokenEmbedder(Protocol):
    """Gives unit-length token embeddings (see `Embedder.embed`)."""

    def embed(self, texts: Sequence[str]) -> list[Tensor]:
        """Embeddings [T, E] of each text."""
        ...


def honesty(text: str, source: str, weight: float) -> float:
    """1 less `weight` times the root of the share of numbers and names that the source lacks; in [1 - weight, 1].

    The root makes the first inventions cost most: one wrong number in ten already spoils a text. A factor rather
    than a subtraction, so that an invention on the topic still differs from another topic.
    """
    return 1.0 - weight * math.sqrt(unsupported_share(text, source))


class SimilarityReward:
    """1 if F1 of the token matching, reduced for invented numbers and names, is over a threshold, else 0.

    The paper asks for BERTScore F1 > 0.65. With MiniLM paraphrases lie near 0.8, paraphrases that leave out half
    near 0.65, inventions near 0.5 and other topics near 0.1. With `threshold` None the reward is the graded score.
    """

    name = "similarity"
    range = (0.0, 1.0)

    def __init__(
        self, embedder: TokenEmbedder, *, threshold: float | None = 0.65, invention_weight: float = 0.7
    ) -> None:
        """`invention_weight`: the share lost when all of a text's numbers and names are invented."""
        self._embedder = embedder
        self._threshold = threshold
        self._weight = invention_weight

    def __call__(self, candidates: Sequence[Candidate]) -> list[float]:
        """Values [C]."""
        scores = self.scores([c.parsed.text for c in candidates], [c.source for c in candidates])
        if self._threshold is None:
            return scores
        return [score if math.isnan(score) else float(score > self._threshold) for score in scores]

    def scores(self, texts: Sequence[str], sources: Sequence[str]) -> list[float]:
        """Graded similarity of each text to its source, in [0, 1]."""
        matches = _matches(self._embedder, texts, sources)
        return [
            # In this order, NaN stays NaN.
            min(match.f1 * honesty(text, source, self._weight), 1.0)
            for match, text, source in zip(matches, texts, sources, strict=True)
        ]


class FaithfulnessReward:
    """The mean probability that the source supports an entry, over a reformatted text's entries; 0 without entries.

    The probability is a trained head's (`synpro train-judge`), on evidence of token embeddings and words; see
    `evidence`. Topic and content are judged together, a line each, against the very slice that the generator saw.
    """

    name = "faithfulness"
    range = (0.0, 1.0)

    def __init__(self, embedder: TokenPlaces, head: Head | None = None, *, threshold: float | None = None) -> None:
        """Without a head, the package's own; with a threshold an entry counts 1 from there on, else 0."""
        self._embedder = embedder
        self._head = head or embedded_head()
        self._threshold = threshold

    @property
    def version(self) -> str:
        """What it judges by."""
        return f"MiniLM, head {self._head.version[:16]}"

    def __call__(self, candidates: Sequence[Candidate]) -> list[float]:
        """Values [C]; NaN where an entry's support is unknown."""
        pairs = [(f"{e.topic}\n{e.content}".strip(), c.source) for c in candidates for e in c.parsed.entries]
        supported = iter(self.supported([text for text, _ in pairs], [source for _, source in pairs]))
        return [sum(next(supported) for _ in c.parsed.entries) / max(1, len(c.parsed.entries)) for c in candidates]

    def supported(self, texts: Sequence[str], sources: Sequence[str]) -> list[float]:
        """How likely each text is supported by its source, in [0, 1]; NaN where the embeddings are no numbers."""
        scores = self._head.probabilities(evidence_of(self._embedder, texts, sources)).tolist()
        if self._threshold is None:
            return scores
        return [score if math.isnan(score) else float(score >= self._threshold) for score in scores]


def _matches(embedder: TokenEmbedder, texts: Sequence[str], sources: Sequence[str]) -> list[Match]:
    vectors = embedder.embed([*texts, *sources])
    return [
        greedy_match(text_TE, source_TE)
        for text_TE, source_TE in zip(vectors[: len(texts)], vectors[len(texts) :], strict=True)
    ]
