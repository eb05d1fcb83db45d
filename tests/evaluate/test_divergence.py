"""The divergence of two sets of texts: none of like ones, and each direction where its own kind of fault is."""

import random

import numpy as np
import pytest

from synpro_engine.data.ngrams import words_of
from synpro_engine.evaluate import divergence
from synpro_engine.evaluate.divergence import LEAST_WORDS, divergences

VOCABULARY = [f"{letter}{number}" for letter in "abcdefgh" for number in range(40)]
WEIGHTS = [1 / (rank + 3) for rank in range(len(VOCABULARY))]


def _texts(
    seed: int, count: int, words: list[str] | None = None, weights: list[float] | None = None
) -> list[list[str]]:
    rng = random.Random(seed)
    return [[" ".join(rng.choices(words or VOCABULARY, weights or WEIGHTS, k=60))] for _ in range(count)]


def test_like_sets_lie_at_nothing_from_each_other_whatever_their_sizes() -> None:
    for sizes in ((60, 60), (60, 400)):
        found = [divergences(_texts(seed, sizes[0]), _texts(100 + seed, sizes[1])) for seed in range(6)]
        both = [(one.to_other, one.from_other) for one in found if one is not None]
        assert len(both) == 6 and np.abs(np.mean(both, axis=0)).max() < 0.03, sizes


def test_texts_that_lost_the_tail_are_far_from_organic_ones_the_way_back_alone() -> None:
    collapsed = _texts(1, 200, VOCABULARY[:60], WEIGHTS[:60])
    found = divergences(collapsed, _texts(2, 200))
    assert found is not None and found.from_other > 2 * found.to_other > 0


def test_texts_that_add_what_organic_ones_have_not_are_far_the_way_there() -> None:
    foreign = [*VOCABULARY, *(f"z{number}" for number in range(200))]
    found = divergences(_texts(1, 1000, foreign, [*WEIGHTS, *[0.005] * 200]), _texts(2, 1000))
    assert found is not None and found.to_other > 2 * found.from_other


def test_the_estimate_is_near_the_divergence_of_known_distributions_and_not_below_it() -> None:
    """Words are drawn each by itself, so that the bigrams' divergence is that of the words; models are made of few."""
    other = WEIGHTS[::-1]
    p, q = (np.array(weights) / sum(weights) for weights in (WEIGHTS, other))
    found = divergences(_texts(1, 3000), _texts(2, 3000, weights=other))
    assert found is not None
    for estimate, a, b in ((found.to_other, p, q), (found.from_other, q, p)):
        assert 0.95 < estimate / float((a * np.log(a / b)).sum()) < 1.35


def test_a_model_of_words_is_a_distribution_behind_every_word() -> None:
    [words], size = divergence._numbered([["one two one three one two", "two two four"]])
    model = divergence._Bigrams(words, size)
    for before in range(-1, size):
        each = divergence._Words(np.arange(size), np.full(size, before))
        losses = [
            model.cross_entropy(divergence._Words(each.word_N[n : n + 1], each.before_N[:1])) for n in range(size)
        ]
        assert sum(np.exp(-np.array(losses))) == pytest.approx(1.0)


def test_copies_of_one_source_stay_in_one_half() -> None:
    """Eight samples of each slice: were they in both halves, a set would seem to know itself."""
    organic, own = _texts(2, 200), _texts(3, 50)
    several = [group * 8 for group in own]
    apart = divergences(several, organic)
    scattered = divergences([[text] for group in several for text in group], organic)
    assert apart is not None and scattered is not None and scattered.to_other > apart.to_other + 0.5


def test_too_few_words_say_nothing() -> None:
    few = _texts(1, 2 * (LEAST_WORDS // 60))
    assert sum(len(words_of(group).keys_N) for group in few) < 2 * LEAST_WORDS
    assert divergences(few, _texts(2, 200)) is None and divergences([], []) is None and divergences([[""]], few) is None
