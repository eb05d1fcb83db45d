"""A text's words put beside a source's: one walk along the source, word by word, and what is odd about it.

The walk is the likeliest under costs of skipping and jumping (Viterbi 1967), so that a word which the source lacks
still falls on the word whose place it took. Shape suffixes: W words of the text, V words of the source.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from synpro_engine.reward.tokens import Places, Words

Array = NDArray[np.float64]
Flags = NDArray[np.bool_]

ALIGNED = (
    "aligned_mean", "aligned_least", "aligned_two_least", "others", "others_least", "others_second", "others_share",
    "others_known", "others_new", "others_names", "others_numbers", "held_known", "held_new", "held_least", "crossed",
    "longest_others", "last_other", "contiguous", "jumps_within", "jumps_between", "backward", "skipped",
    "skipped_most", "limits_skipped", "limits_before", "limits_replaced", "limits_added",
)  # fmt: skip
_SAME = 0.3  # what a word in one of its forms is worth beside its cosine
_FAR = 0.5
_COSTS = {0: 0.15, -1: 0.3, 1: 0.0, 2: 0.04, 3: 0.08, 4: 0.12, 5: 0.16, 6: 0.2, 7: 0.24, 8: 0.28}
"""Of steps along the source, by their length; of all others `_FAR`."""
_NEAR = max(_COSTS)


class Walk(NamedTuple):
    """Where each word of a text falls in a source."""

    text: Words
    source: Words
    at_W: Places
    """The source's word."""
    cosine_W: Array
    same_W: Flags
    """Whether it is the same word, in one of its forms."""
    begins_W: Flags
    """Whether a clause of the text begins."""

    def near(self) -> Flags:
        """Whether each word but the first follows on the one before it, or skips a few words of the source [W - 1]."""
        step = np.diff(self.at_W)
        return ~self.begins_W[1:] & (step > 0) & (step <= _NEAR)


def walk(text: Words, source: Words) -> Walk:
    """The likeliest walk; where a clause of the text begins, it begins anew. Both texts have words."""
    cosine_WV = np.asarray(text.vectors_WE @ source.vectors_WE.T, np.float64)
    same_WV = np.array(text.stems)[:, None] == np.array(source.stems)[None]
    begins_W = np.diff(text.clause_W, prepend=-1) != 0
    at_W = _likeliest(cosine_WV + _SAME * same_WV, begins_W)
    rows = np.arange(len(at_W))
    return Walk(text, source, at_W, cosine_WV[rows, at_W], same_WV[rows, at_W], begins_W)


def _likeliest(worth_WV: Array, begins_W: Flags) -> Places:
    count, wide = worth_WV.shape
    from_WV = np.zeros((count, wide), np.int64)
    best_V, places_V = worth_WV[0], np.arange(wide)
    costs = {step: cost for step, cost in _COSTS.items() if abs(step) < wide}
    for i in range(1, count):
        top = int(best_V.argmax())
        reached_V, from_V = np.full(wide, best_V[top] - (0.0 if begins_W[i] else _FAR)), np.full(wide, top)
        for step, cost in {} if begins_W[i] else costs.items():
            to, start = slice(max(0, step), wide + min(0, step)), slice(max(0, -step), wide - max(0, step))
            better = best_V[start] - cost > reached_V[to]
            reached_V[to] = np.where(better, best_V[start] - cost, reached_V[to])
            from_V[to] = np.where(better, places_V[start], from_V[to])
        from_WV[i] = from_V
        best_V = reached_V + worth_WV[i]
    at_W = np.full(count, int(best_V.argmax()))
    for i in range(count - 1, 0, -1):
        at_W[i - 1] = from_WV[i, at_W[i]]
    return at_W


def alignment(text: Words, source: Words) -> dict[str, float]:
    """What the walk of `text` along `source` shows, by the names of `ALIGNED`. Both texts have words."""
    found = walk(text, source)
    return _others(found) | _steps(found) | _limits(found)


def _others(found: Walk) -> dict[str, float]:
    """Of words that fall on another word: synonyms, words from elsewhere in the source, and inventions."""
    text, stems = found.text, found.text.stems
    content_W = text.content_W if text.content_W.any() else np.ones_like(text.content_W)
    others = [int(i) for i in np.flatnonzero(content_W & ~found.same_W)]
    everywhere = set(found.source.stems)
    known = {i for i in others if stems[i] in everywhere}
    # Two words in each other's place fall on each other.
    taken = {found.source.stems[found.at_W[i]]: i for i in others}
    held = [i for i in others if _held(i, found)]
    low = [*np.sort(found.cosine_W[others]), 1.0, 1.0]
    aligned = np.sort(found.cosine_W[content_W])
    runs = "".join("-" if same else "x" for same in found.same_W[content_W]).split("-")
    return {
        "aligned_mean": aligned.mean(), "aligned_least": aligned[0], "aligned_two_least": aligned[:2].mean(),
        "others": np.log1p(len(others)), "others_share": len(others) / content_W.sum(),
        "others_least": low[0], "others_second": low[1],
        "others_known": np.log1p(len(known)), "others_new": np.log1p(len(others) - len(known)),
        "others_names": sum(text.said[i][0].isupper() and not found.begins_W[i] for i in others),
        "others_numbers": sum(text.said[i][0].isdigit() for i in others),
        "held_known": sum(i in known for i in held), "held_new": sum(i not in known for i in held),
        "held_least": min((found.cosine_W[i] for i in held), default=1.0),
        "crossed": sum(taken.get(stems[i], i) != i for i in others),
        "longest_others": np.log1p(max(map(len, runs))), "last_other": float(bool(runs[-1])),
    }  # fmt: skip


def _held(i: int, found: Walk) -> bool:
    """Whether the words on either side in its clause are the source's own, and stand there on either side, too."""
    clause_W = found.text.clause_W
    sides = [j for j in (i - 1, i + 1) if 0 <= j < len(clause_W) and clause_W[j] == clause_W[i]]
    return bool(sides) and all(found.same_W[j] and found.at_W[j] - found.at_W[i] == j - i for j in sides)


def _steps(found: Walk) -> dict[str, float]:
    step, inside = np.diff(found.at_W), ~found.begins_W[1:]
    far = inside & (np.abs(step) > _NEAR)
    clause_W = found.source.clause_W[found.at_W]
    between = far & (np.diff(clause_W) != 0)
    content = np.concatenate([[0], found.source.content_W.cumsum()])
    left = (content[found.at_W[1:]] - content[found.at_W[:-1] + 1])[found.near()]
    return {
        "contiguous": (step[inside] == 1).mean() if inside.any() else 1.0,
        "jumps_within": far.sum() - between.sum(), "jumps_between": between.sum(),
        "backward": (inside & (step < 0)).sum(),
        "skipped": np.log1p(left.sum()), "skipped_most": left.max(initial=0),
    }  # fmt: skip


def _limits(found: Walk) -> dict[str, float]:
    """Words like not and only that the text leaves out, puts in, or puts another word for."""
    limits_V, at_W = found.source.limits_W.copy(), found.at_W
    own = np.flatnonzero(found.text.limits_W)
    added = sum(not limits_V[max(0, at_W[i] - 1) : at_W[i] + 2].any() for i in own)
    limits_V[at_W[own]] = False  # those that are kept
    before = np.concatenate([[0], limits_V.cumsum()])
    near = found.near()
    starts_W = found.same_W & (at_W > 0) & ~np.concatenate([[False], near])
    return {
        "limits_skipped": (before[at_W[1:]] - before[at_W[:-1] + 1])[near].sum(),
        "limits_before": limits_V[at_W[starts_W] - 1].sum(),
        "limits_replaced": limits_V[at_W[~found.text.limits_W]].sum(),
        "limits_added": added,
    }  # fmt: skip
