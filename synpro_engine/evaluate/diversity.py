"""How varied a set of texts is, and how much of it is copied from the organic text.

Standard measures, each blind to something:

- distinct-n (Li et al., arXiv 1510.03055): unique n-grams / n-grams. It falls as a corpus grows, for any author, so
  it is taken in blocks of equal length and averaged; values of corpora of different sizes can then be compared.
- compression ratio (Shaib et al., arXiv 2403.00553): bytes / zlib bytes. It sees repetition within 32 KiB only.
- overlap: the share of a text's n-grams that occur anywhere in the organic text. 1.0 is a copy, in any order.
- repetition between texts: the share of their n-grams that another of them has too. It rises with their number.
- self-BLEU (Zhu et al., arXiv 1802.01886): each text held by BLEU-4 against the others (`self_bleu`).
- divergence from held-out organic text, both ways, by a small model of words (`divergence`).
- perplexity under the model at the plateau, beside that of held-out organic text in pieces of the same lengths: below
  it a text is what the model finds likely already, far above it off the distribution (Shumailov et al., as below).
- rare words: the share outside the commonest words of the organic text, which is where a model that learns from models
  loses first (Shumailov et al., arXiv 2305.17493). It sees words alone, and a generator may bring rare ones of its own.

Words and n-grams are those of `ngrams`; an n-gram never crosses from one text into the next.
"""

import math
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from synpro_engine.data.encoding import batched
from synpro_engine.data.ngrams import Keys, Words, distinct, look_up, ngrams_of, words_of
from synpro_engine.evaluate.self_bleu import self_bleu

BLOCK_WORDS = 2_000
COMMON_SHARE = 0.9
"""Part of the organic words that the common ones make up; so a tenth of them are rare."""


@dataclass(frozen=True, kw_only=True)
class Diversity:
    """Measures of one set of texts. A ratio is None where the texts are too short to have a single such n-gram."""

    texts: int
    words: int
    utf8_bytes: int
    mean_words: float
    mean_chars: float
    distinct_1: float | None
    distinct_2: float | None
    distinct_3: float | None
    compression_ratio: float | None
    overlap_4: float | None = None  # None also where there was no organic text to compare with
    overlap_8: float | None = None
    repeated_8: float | None = None
    self_bleu: float | None = None  # None also where there are not two texts with words
    rare_words: float | None = None  # None also where the organic text's common words were not given
    kl_to_organic: float | None = None  # see `divergence`; None also where there was no held-out text to hold it to
    kl_from_organic: float | None = None
    perplexity: float | None = None  # under a model that was trained on organic text alone
    organic_perplexity: float | None = None  # of held-out organic text in pieces as long, under the same model

    @property
    def perplexity_gap(self) -> float | None:
        """ln of the texts' perplexity over that of organic ones, nats per token: below 0 they are likelier."""
        if self.perplexity is None or self.organic_perplexity is None:
            return None
        return math.log(self.perplexity / self.organic_perplexity)


def common_words(texts: Iterable[str], share: float = COMMON_SHARE) -> Keys:
    """The commonest words of `texts`, as many as make up that share of all their words."""
    words, counts = np.unique(words_of(texts).keys_N, return_counts=True)
    # Of words that are as common the order of their keys, so that the same texts have the same ones.
    order = np.argsort(-counts, kind="stable")
    enough = int(np.searchsorted(np.cumsum(counts[order]), share * counts.sum())) + 1
    return np.sort(words[order[:enough]])


def measure_diversity(
    texts: Iterable[str],
    *,
    organic: Iterable[str] | None = None,
    common: Keys | None = None,
    block_words: int = BLOCK_WORDS,
) -> Diversity:
    """Measure `texts`; with `organic` also how many of their n-grams occur there. Arguments: `measure_diversities`."""
    return measure_diversities({"": list(texts)}, organic=organic, common=common, block_words=block_words)[""]


def measure_diversities(
    sets: Mapping[str, Sequence[str]],
    *,
    organic: Iterable[str] | None = None,
    common: Keys | None = None,
    block_words: int = BLOCK_WORDS,
) -> dict[str, Diversity]:
    """Measure sets of texts, by their names; with `organic` also how many of their n-grams occur there.

    Args:
        sets: the texts to measure, each on its own (an n-gram does not cross a boundary).
        organic: the texts that they may have been copied from; they pass by once, for all sets, and are never held.
        common: words that are not rare, of `common_words`.
        block_words: distinct-n is the mean over blocks of this many words; a remainder shorter than a block is left
            out unless it is all there is. Compare only values taken with the same block.
    """
    assert block_words > 0
    words = {name: words_of(texts) for name, texts in sets.items()}
    overlaps = dict.fromkeys(sets, (None, None)) if organic is None else _overlaps(words, organic, (4, 8))
    return {name: _diversity(texts, words[name], overlaps[name], common, block_words) for name, texts in sets.items()}


def _diversity(
    texts: Sequence[str],
    words: Words,
    overlaps: tuple[float | None, ...],
    common: Keys | None,
    block_words: int,
) -> Diversity:
    count = max(len(texts), 1)
    joined = "\n".join(texts).encode("utf-8", "surrogatepass")
    return Diversity(
        texts=len(texts),
        words=len(words.keys_N),
        utf8_bytes=sum(len(text.encode("utf-8", "surrogatepass")) for text in texts),
        mean_words=len(words.keys_N) / count,
        mean_chars=sum(map(len, texts)) / count,
        distinct_1=_distinct(words, 1, block_words),
        distinct_2=_distinct(words, 2, block_words),
        distinct_3=_distinct(words, 3, block_words),
        compression_ratio=len(joined) / len(zlib.compress(joined, 9)) if joined else None,
        overlap_4=overlaps[0],
        overlap_8=overlaps[1],
        repeated_8=_repeated(words, 8),
        self_bleu=self_bleu(words),
        rare_words=None if common is None else _rare(words, common),
    )


def rare_share(texts: Iterable[str], common: Keys) -> float | None:
    """The share of words that are not among the `common` ones; None where there are no words."""
    return _rare(words_of(texts), common)


def _rare(words: Words, common: Keys) -> float | None:
    return float(1 - np.isin(words.keys_N, common).mean()) if len(words.keys_N) else None


def _repeated(words: Words, n: int) -> float | None:
    """Share of n-grams that stand in more than one text."""
    keys, texts = ngrams_of(words, n)
    if not len(keys):
        return None
    order = np.lexsort((texts, keys))
    keys, texts = keys[order], texts[order]
    # Runs of one n-gram; it is repeated where the text changes within its run.
    starts = np.append(True, keys[1:] != keys[:-1])
    run_N = np.cumsum(starts) - 1
    changes = np.append(False, (texts[1:] != texts[:-1]) & ~starts[1:])
    shared_R = np.zeros(int(run_N[-1]) + 1, dtype=bool)
    shared_R[run_N[changes]] = True
    return float(shared_R[run_N].mean())


def _distinct(words: Words, n: int, block_words: int) -> float | None:
    ratios: list[float] = []
    # Whole blocks alone, for the ratio falls with a text's length; a shorter text is a block of its own.
    whole = len(words.keys_N) // block_words * block_words or len(words.keys_N)
    for start in range(0, whole, block_words):
        block = slice(start, min(start + block_words, whole))
        grams, _ = ngrams_of(Words(keys_N=words.keys_N[block], text_N=words.text_N[block]), n)
        if len(grams):
            ratios.append(len(distinct(grams)) / len(grams))
    return float(np.mean(ratios)) if ratios else None


def _overlaps(
    sets: Mapping[str, Words], organic: Iterable[str], orders: Sequence[int]
) -> dict[str, tuple[float | None, ...]]:
    grams = {name: [np.unique(ngrams_of(w, n)[0], return_counts=True) for n in orders] for name, w in sets.items()}
    found = {name: [np.zeros(len(keys), dtype=bool) for keys, _ in of] for name, of in grams.items()}
    for batch in batched(organic, len):
        source = words_of(batch)
        # In order, as the sets are: looked up so, neighbours are found where memory was read just now.
        passed = [distinct(ngrams_of(source, n)[0]) for n in orders]
        for name, of in grams.items():
            for (keys, _), marks, passing in zip(of, found[name], passed, strict=True):
                # The batch among the set's and not the other way: of a large set little is read.
                places, there = look_up(passing, keys)
                marks[places[there]] = True
    return {
        name: tuple(
            float(counts[marks].sum() / counts.sum()) if len(keys) else None
            for (keys, counts), marks in zip(of, found[name], strict=True)
        )
        for name, of in grams.items()
    }
