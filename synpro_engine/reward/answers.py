"""Where the answer of a question-and-answer entry stands in its source, and whether the question is about that place.

Shape suffixes: W words of the text, V words of the source, A words of the answer, Q of the question, K sentences.
"""

from __future__ import annotations

import re

import numpy as np
from numpy.typing import NDArray

from synpro_engine.reward.tokens import Words

Array = NDArray[np.float64]

ANSWERED = (
    "asked", "asked_polar", "answer_words", "answer_mean", "answer_least", "answer_found", "answer_exact",
    "answer_repeats", "answer_where_asked", "asked_where_answered", "answer_near", "answer_near_best", "answer_apart",
    "asked_found",
)  # fmt: skip
_AFTER_QUESTION = re.compile(r"\?[\"'\u2019\u201d)]*\s+(?=\S[^?]*$)")
_WINDOW = 12  # words on either side of an answer's place that are its surroundings


def answer_start(text: str) -> int | None:
    """Where the answer begins, in characters: after the last question mark; None where nothing is asked."""
    found = _AFTER_QUESTION.search(text)
    return found.end() if found else None


def answering(text: Words, source: Words, start: int) -> dict[str, float]:
    """How the answer that begins at character `start` is found in the source, by the names of `ANSWERED`."""
    is_answer_W = text.starts_W >= start
    plain = [word.casefold() for word, own in zip(text.said, is_answer_W, strict=True) if own]
    if not plain or is_answer_W.all():
        return {}
    polar = plain[0] in ("yes", "no")
    answer_W = is_answer_W & text.content_W
    answer_W = answer_W if answer_W.any() else is_answer_W
    asked_W = ~is_answer_W & text.content_W
    asked_W = asked_W if asked_W.any() else ~is_answer_W
    cosine_WV = np.asarray(text.vectors_WE @ source.vectors_WE.T, np.float64)
    answer_AV, asked_QV = cosine_WV[answer_W], cosine_WV[asked_W]
    stems = {stem for stem, own in zip(text.stems, answer_W, strict=True) if own}
    asked = {stem for stem, own in zip(text.stems, asked_W, strict=True) if own}
    everywhere = set(source.stems)
    first_K = np.unique(source.clause_W, return_index=True)[1]
    answer_K = np.maximum.reduceat(answer_AV, first_K, axis=1).mean(0)
    asked_K = np.maximum.reduceat(asked_QV, first_K, axis=1).mean(0)
    best_A = answer_AV.max(1)
    return {
        "asked": 1.0, "asked_polar": float(polar), "answer_words": float(np.log1p(len(plain))),
        "answer_mean": float(best_A.mean()), "answer_least": float(best_A.min()),
        "answer_found": len(stems & everywhere) / len(stems),
        "answer_exact": float(_stands(plain, [word.casefold() for word in source.said])),
        "answer_repeats": len(stems & asked) / len(stems),
        "answer_where_asked": float(answer_K[asked_K.argmax()]),
        "asked_where_answered": float(asked_K[answer_K.argmax()]),
        "asked_found": len(asked & everywhere) / len(asked),
        **_surroundings(answer_AV, asked_QV),
    }  # fmt: skip


def _stands(part: list[str], whole: list[str]) -> bool:
    """Whether the words stand together in this order."""
    return any(whole[i : i + len(part)] == part for i in range(len(whole) - len(part) + 1))


def _surroundings(answer_AV: Array, asked_QV: Array) -> dict[str, float]:
    """How well the question's words match around the answer's place, and around the place that suits them best."""
    wide = answer_AV.shape[1]
    near_V = np.array([asked_QV[:, max(0, v - _WINDOW) : v + _WINDOW + 1].max(1).mean() for v in range(wide)])
    at = int(answer_AV.mean(0).argmax())
    # The place where answer and surroundings match best together.
    both_V = near_V + answer_AV.mean(0)
    best = int(both_V.argmax())
    return {
        "answer_near": float(near_V[at]), "answer_near_best": float(both_V[best] / 2),
        "answer_apart": float(near_V.max() - near_V[at]),
    }  # fmt: skip
