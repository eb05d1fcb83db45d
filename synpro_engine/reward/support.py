"""Evidence of many pairs at once: each text is embedded once, however many pairs it stands in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from torch import Tensor

from synpro_engine.reward.evidence import FEATURES, evidence
from synpro_engine.reward.head import Array
from synpro_engine.reward.tokens import Tokens

_PAIRS = 512  # at a time: embeddings of more texts are not held


class TokenPlaces(Protocol):
    """Gives token embeddings with the tokens' places (see `Embedder`)."""

    def embed(self, texts: Sequence[str]) -> list[Tensor]:
        """Embeddings [T, E] of each text."""
        ...

    def starts(self, text: str) -> list[int]:
        """Where each token begins, in characters."""
        ...


def evidence_of(embedder: TokenPlaces, texts: Sequence[str], sources: Sequence[str]) -> Array:
    """Features [N, F] of each text against its source."""
    rows = np.zeros((len(texts), len(FEATURES)))
    for start in range(0, len(texts), _PAIRS):
        chosen = slice(start, start + _PAIRS)
        pairs = list(zip(texts[chosen], sources[chosen], strict=True))
        each = list(dict.fromkeys(text for pair in pairs for text in pair))
        tokens = {
            text: Tokens(text, vectors_TE.float().cpu().numpy(), np.array(embedder.starts(text), np.int64))
            for text, vectors_TE in zip(each, embedder.embed(each), strict=True)
        }
        rows[chosen] = [evidence(tokens[text], tokens[source]) for text, source in pairs]
    return rows
