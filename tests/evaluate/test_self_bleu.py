"""Self-BLEU equals BLEU of each text against all the others, counted one by one."""

import math
import random
from collections import Counter
from collections.abc import Sequence

import pytest

from synpro_engine.data.ngrams import words_of
from synpro_engine.evaluate import measure_diversity, self_bleu


def _ngrams(words: Sequence[str], n: int) -> Counter[tuple[str, ...]]:
    return Counter(tuple(words[at : at + n]) for at in range(len(words) - n + 1))


def _bleu(text: list[str], references: list[list[str]]) -> float:
    """Papineni et al.'s sums, of one text, with 0.1 for an order of which nothing is found."""
    logs: list[float] = []
    for n in range(1, 5):
        mine, others = _ngrams(text, n), [_ngrams(one, n) for one in references]
        matched = sum(min(count, max(one[gram] for one in others)) for gram, count in mine.items())
        if n == 1 and not matched:
            return 0.0
        logs.append(math.log((matched or 0.1) / max(sum(mine.values()), 1)))
    nearest = min((abs(len(one) - len(text)), len(one)) for one in references)[1]
    return math.exp(sum(logs) / 4) * min(1.0, math.exp(1 - nearest / len(text)))


def _naive(texts: list[str]) -> float:
    words = [text.split() for text in texts]
    return sum(_bleu(one, words[:at] + words[at + 1 :]) for at, one in enumerate(words)) / len(words)


def _texts(seed: int, count: int, vocabulary: int = 12) -> list[str]:
    rng = random.Random(seed)
    return [" ".join(f"w{rng.randrange(vocabulary)}" for _ in range(rng.randint(1, 30))) for _ in range(count)]


@pytest.mark.parametrize("seed", range(6))
def test_it_equals_bleu_of_each_text_against_all_the_others(seed: int) -> None:
    texts = _texts(seed, 9, vocabulary=(12, 60)[seed % 2])
    texts[2:4] = [texts[1], "w1 w1 w1 w1 w2"]  # a copy, and a word more often than others have it
    texts.append("alone here")
    assert self_bleu(words_of(texts)) == pytest.approx(_naive(texts))


def test_copies_have_one_and_texts_without_a_word_in_common_none() -> None:
    assert self_bleu(words_of(["one two three four five"] * 3)) == pytest.approx(1.0)
    assert self_bleu(words_of(["a b c d", "e f g h", "i"])) == 0.0
    assert self_bleu(words_of(["one text", "", "..."])) is None and self_bleu(words_of([])) is None


def test_texts_beyond_the_bound_are_passed_over_evenly_and_long_ones_lose_their_ends() -> None:
    texts = _texts(3, 40)
    assert self_bleu(words_of(texts), most_texts=10) == pytest.approx(_naive(texts[::4]))
    cut = [" ".join(text.split()[:6]) for text in texts]
    assert self_bleu(words_of(texts), most_words=6) == pytest.approx(_naive(cut))
    many = _texts(4, 700)
    assert self_bleu(words_of(many)) == pytest.approx(_naive([many[at * 700 // 200] for at in range(200)]))


def test_it_stands_among_the_measures_of_a_set_and_rises_as_texts_grow_alike() -> None:
    varied, alike = _texts(5, 30, vocabulary=400), _texts(5, 30, vocabulary=8)
    found, worse = measure_diversity(varied).self_bleu, measure_diversity(alike).self_bleu
    assert found is not None and worse is not None and found == pytest.approx(_naive(varied)) and worse > 3 * found
