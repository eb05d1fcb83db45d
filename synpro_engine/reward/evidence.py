"""What speaks for and against a text's being supported by its source, as numbers for a small head to weigh.

From the matching of the two texts' token embeddings (as BERTScore's, but kept token by token, for a mean over tokens
hides the one that is wrong) and from their words. Shape suffixes: T text tokens, S source tokens, K sentences of the
source, F features.
"""

from __future__ import annotations

import re
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from synpro_engine.data.word_pattern import WORD
from synpro_engine.reward.alignment import ALIGNED, alignment
from synpro_engine.reward.answers import ANSWERED, answer_start, answering
from synpro_engine.reward.tokens import Tokens, clauses, is_content, stem, words_of
from synpro_engine.reward.words import common_subsequence, is_number, stated_facts, unsupported, words

Array = NDArray[np.float64]

FEATURES = (
    "mean", "least", "tenth", "least_three", "content_mean", "content_least", "content_tenth",
    "best_mean", "best_least", "best_tenth", "best_least_three", "best_content_tenth", "two_gain", "clause_gain",
    "worst_clause", "worst_clause_least", "last_clause", "last_clause_least", "last_clause_words", "recall_best",
    "numbers_lacking", "names_lacking", "facts", "found", "found_best", "lacking", "lacking_least", "lacking_mean",
    "lacking_last", "negations", "negations_best", "negations_more", "negations_fewer", "negations_lacking",
    "order", "order_best", "bigrams", "inversions", "jumps", "jump_at_start", "jump_at_end", "length", "clauses",
    *ALIGNED, *ANSWERED,
)  # fmt: skip
_NEGATION = re.compile(
    r"\b(?:not|no|never|none|nor|neither|nothing|nobody|cannot|without|hardly|scarcely|except|unless|only)\b|n['\u2019]t\b",
    re.IGNORECASE,
)
_FAR = 12  # tokens from one match to the next that are more than a paraphrase's rearrangement


def evidence(text: Tokens, source: Tokens) -> Array:
    """Features [F], in the order of `FEATURES`; all zero but where words speak if either has no tokens."""
    found = dict.fromkeys(FEATURES, 0.0)
    parts = clauses(source.text)
    best = 0
    if len(text.starts_T) and len(source.starts_T):
        cosine_TS = np.asarray(text.vectors_TE @ source.vectors_TE.T, np.float64)
        first_K, owner = _groups(source.starts_T, [at for at, _ in parts])
        by_sentence_TK = np.maximum.reduceat(cosine_TS, first_K, axis=1)
        chosen = int(by_sentence_TK.mean(0).argmax())
        best = int(owner[chosen])
        found |= _matches(cosine_TS, by_sentence_TK, chosen, text)
        found |= _order(cosine_TS, first_K, text)
        last = first_K[chosen + 1] if chosen + 1 < len(first_K) else cosine_TS.shape[1]
        found["recall_best"] = float(cosine_TS[:, first_K[chosen] : last].max(0).mean())
        found |= _lacking(cosine_TS.max(1), text, source.text)
        found |= _by_words(text, source)
    found |= _words(text.text, source.text, parts[best][1])
    return np.array([found[name] for name in FEATURES], np.float64)


def _by_words(text: Tokens, source: Tokens) -> dict[str, float]:
    said, known = words_of(text), words_of(source)
    if not said.said or not known.said:
        return {}
    start = answer_start(text.text)
    return alignment(said, known) | ({} if start is None else answering(said, known, start))


def _groups(starts_T: NDArray[np.int64], begins: list[int]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The first token of each part that has tokens, and which part it is."""
    owner_T = np.searchsorted(np.array(begins), starts_T, side="right") - 1
    owner, first = np.unique(np.maximum(owner_T, 0), return_index=True)
    return first, owner


def _low(values: Array, name: str) -> dict[str, float]:
    ordered = np.sort(values)
    tenth = ordered[: max(1, len(ordered) // 10)].mean()
    return {f"{name}least": ordered[0], f"{name}tenth": tenth, f"{name}least_three": ordered[:3].mean()}


def _matches(cosine_TS: Array, by_sentence_TK: Array, chosen: int, text: Tokens) -> dict[str, float]:
    all_T, best_T = cosine_TS.max(1), by_sentence_TK[:, chosen]
    content_T = _content(text)
    first_C = _groups(text.starts_T, [at for at, _ in clauses(text.text)])[0]
    size = np.diff([*first_C, len(all_T)])
    mean_C = np.add.reduceat(all_T, first_C) / size
    low_C = np.minimum.reduceat(np.where(content_T, all_T, 1.0), first_C)
    # Two sentences that each match a half are not one that matches the whole.
    single_CK = np.add.reduceat(by_sentence_TK, first_C, axis=0) / size[:, None]
    content, content_best = (values[content_T] if content_T.any() else values for values in (all_T, best_T))
    low = _low(content, "content_")
    return {
        "mean": all_T.mean(), "content_mean": content.mean(), "best_mean": best_T.mean(),
        **_low(all_T, ""), **_low(best_T, "best_"),
        "content_least": low["content_least"], "content_tenth": low["content_tenth"],
        "best_content_tenth": _low(content_best, "")["tenth"],
        "two_gain": all_T.mean() - best_T.mean(), "clause_gain": (mean_C - single_CK.max(1)).max(),
        "worst_clause": mean_C.min(), "worst_clause_least": low_C.min(),
        "last_clause": mean_C[-1], "last_clause_least": low_C[-1], "last_clause_words": np.log1p(size[-1]),
        "clauses": np.log(len(first_C)),
    }  # fmt: skip


def _content(text: Tokens) -> NDArray[np.bool_]:
    """Which tokens [T] belong to words that carry meaning."""
    kept = np.zeros(len(text.text) + 1, bool)
    for match in re.finditer(WORD, text.text):
        kept[match.start() : match.end()] = is_content(match[0])
    return kept[text.starts_T]


def _order(cosine_TS: Array, first_K: NDArray[np.int64], text: Tokens) -> dict[str, float]:
    """Whether matches follow each other as in the source; a jump is judged by where it leaves and lands."""
    at = cosine_TS.argmax(1)[_content(text)]
    if len(at) < 2:
        return {}
    step = np.diff(at)
    widest = int(np.abs(step).argmax())
    ends_K = np.array([*first_K[1:], cosine_TS.shape[1]])
    far = abs(int(step[widest])) > _FAR
    return {
        "inversions": float((step < 0).mean()),
        "jumps": float((np.abs(step) > _FAR).mean()),
        "jump_at_start": float(far and (np.abs(first_K - at[widest + 1]) <= 3).any()),
        "jump_at_end": float(far and (np.abs(ends_K - at[widest]) <= 4).any()),
    }


def _lacking(all_T: Array, text: Tokens, source: str) -> dict[str, float]:
    """How near the words that the source lacks come to any of its own: synonyms do, inventions do not."""
    known = {stem(word) for word in words(source)}
    spans = [match.span() for match in re.finditer(WORD, text.text) if is_content(match[0])]
    begins = text.starts_T
    new = [(a, b) for a, b in spans if stem(text.text[a:b]) not in known]
    near = [all_T[(begins >= a) & (begins < b)] for a, b in new]
    lows = [float(values.min()) for values in near if len(values)]
    last = max(at for at, _ in clauses(text.text))
    return {
        "lacking": float(np.log1p(len(new))),
        "lacking_least": min(lows, default=1.0),
        "lacking_mean": float(np.mean(lows)) if lows else 1.0,
        "lacking_last": float(any(a >= last for a, _ in new)),
    }


def _words(text: str, source: str, sentence: str) -> dict[str, float]:
    said, known, near = words(text), words(source), words(sentence)
    stems = [stem(word) for word in said if is_content(word)]
    missing = unsupported(text, source)
    negations, in_best = len(_NEGATION.findall(text)), len(_NEGATION.findall(sentence))
    pairs = set(pairwise(known))
    own = list(pairwise(said))
    length = max(1, len(said))
    return {
        "numbers_lacking": float(sum(map(is_number, missing))),
        "names_lacking": float(sum(not is_number(fact) for fact in missing)),
        "facts": float(np.log1p(len(stated_facts(text)))),
        "found": _share(stems, {stem(word) for word in known}),
        "found_best": _share(stems, {stem(word) for word in near}),
        "negations": float(negations), "negations_best": float(in_best),
        "negations_more": float(max(0, negations - in_best)), "negations_fewer": float(max(0, in_best - negations)),
        "negations_lacking": float(negations > 0 and not _NEGATION.search(source)),
        "order": common_subsequence(said, known) / length, "order_best": common_subsequence(said, near) / length,
        "bigrams": sum(pair in pairs for pair in own) / max(1, len(own)),
        "length": float(np.log(length)),
    }  # fmt: skip


def _share(stems: list[str], known: set[str]) -> float:
    return sum(stem in known for stem in stems) / len(stems) if stems else 1.0
