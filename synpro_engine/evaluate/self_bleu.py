"""Self-BLEU: how alike the texts of a set are, by what n-grams they share.

Of a set each text is held by BLEU-4 against all the others as its references, and the mean is taken (Zhu et al.,
SIGIR 2018, arXiv 1802.01886): 1 is the same text over and over. BLEU is Papineni et al.'s (ACL 2002) of a single text:
clipped precisions of 1 to 4 words, their geometric mean, and a penalty for being shorter than the reference nearest in
length (of two the shorter one). An order of n-grams of which none is found counts as 0.1 of one ("method 1" of Chen and
Cherry, WMT 2014, as that paper's code takes it), and a text that shares no word with any other has 0.

It rises with the number of references and with the length of texts, so both are bounded: compare sets of as many.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from synpro_engine.data.ngrams import Words, ngrams_of

MOST_TEXTS = 200
"""Texts that are taken, spread evenly over the set; each has the others as its references."""
MOST_WORDS = 100
"""Words of each text, from its beginning."""
_ORDERS = (1, 2, 3, 4)
_NONE_FOUND = 0.1

Counts = npt.NDArray[np.int64]


def self_bleu(words: Words, *, most_texts: int = MOST_TEXTS, most_words: int = MOST_WORDS) -> float | None:
    """Self-BLEU of texts by their words, from 0 to 1; None where there are not two that have any."""
    taken = _sample(words, most_texts, most_words)
    sizes_T = np.bincount(taken.text_N)
    if len(sizes_T) < 2:
        return None
    matched_OT = np.stack([_found_in_others(taken, n, len(sizes_T)) for n in _ORDERS])
    grams_OT = np.maximum(sizes_T + 1 - np.array(_ORDERS)[:, None], 1)
    precision_OT = np.where(matched_OT > 0, matched_OT, _NONE_FOUND) / grams_OT
    brevity_T = np.exp(np.minimum(0.0, 1 - _nearest_length(sizes_T) / sizes_T))
    bleu_T = np.where(matched_OT[0] > 0, brevity_T * np.exp(np.log(precision_OT).mean(0)), 0.0)
    return float(bleu_T.mean())


def _sample(words: Words, most_texts: int, most_words: int) -> Words:
    """The first words of some of the texts, numbered anew; those without a word are passed over."""
    _, begin_T, size_T = np.unique(words.text_N, return_index=True, return_counts=True)
    count = min(len(begin_T), most_texts)
    taken_T = np.arange(count) * len(begin_T) // max(count, 1)
    size_T, begin_T = np.minimum(size_T[taken_T], most_words), begin_T[taken_T]
    text_N = np.repeat(np.arange(count, dtype=np.int64), size_T)
    first_T = np.cumsum(size_T) - size_T
    return Words(keys_N=words.keys_N[np.arange(len(text_N)) + (begin_T - first_T)[text_N]], text_N=text_N)


def _found_in_others(words: Words, n: int, texts: int) -> Counts:
    """How many n-grams of each text stand in another too, each at most as often as in the one that has it most."""
    keys, text = ngrams_of(words, n)
    order = np.lexsort((text, keys))
    keys, text = keys[order], text[order]
    # A run is one n-gram in one text.
    begin_R = np.flatnonzero(np.append(True, (keys[1:] != keys[:-1]) | (text[1:] != text[:-1]))[: len(keys)])
    count_R = np.diff(np.append(begin_R, len(keys)))
    order = np.lexsort((count_R, keys[begin_R]))
    key_R, text_R, count_R = keys[begin_R][order], text[begin_R][order], count_R[order]
    # Of an n-gram's runs the last has the most, and for that one the others' most is the last but one's.
    begin_G = np.flatnonzero(np.append(True, key_R[1:] != key_R[:-1])[: len(key_R)])
    size_G = np.diff(np.append(begin_G, len(key_R)))
    last_G = begin_G + size_G - 1
    others_R = np.repeat(count_R[last_G], size_G)
    others_R[last_G] = np.where(size_G > 1, count_R[last_G - 1], 0)
    return np.bincount(text_R, np.minimum(count_R, others_R), minlength=texts).astype(np.int64)


def _nearest_length(sizes_T: Counts) -> Counts:
    """Of each text the length of the other that is nearest in length, of two the shorter."""
    order = np.argsort(sizes_T, kind="stable")
    ordered, far = sizes_T[order], np.iinfo(np.int64).max // 2
    below, above = np.append(-far, ordered[:-1]), np.append(ordered[1:], far)
    nearest_T = np.empty_like(sizes_T)
    nearest_T[order] = np.where(ordered - below <= above - ordered, below, above)
    return nearest_T
