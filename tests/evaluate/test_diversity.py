import math
import random
import tracemalloc
import zlib
from collections.abc import Iterator

import numpy as np
import pytest

from synpro_engine.evaluate import bits_per_byte, common_words, measure_diversity

VOCABULARY = [f"word{index}" for index in range(400)]


def _texts(count: int, words: int, seed: int) -> list[str]:
    rng = random.Random(seed)
    return [" ".join(rng.choices(VOCABULARY, k=words)) for _ in range(count)]


def _ngrams(text: str, n: int) -> list[tuple[str, ...]]:
    words = text.casefold().split()
    return [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]


def test_bits_per_byte_of_a_uniform_guess_over_bytes_is_eight() -> None:
    assert bits_per_byte(1000 * math.log(256), 1000) == pytest.approx(8.0)


def test_bits_per_byte_without_bytes_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one byte"):
        bits_per_byte(1.0, 0)


def test_distinct_and_overlap_equal_counting_tuples_of_words() -> None:
    texts, organic = _texts(7, 60, seed=1), _texts(9, 80, seed=2)
    texts[0] = organic[3][:200]
    texts[1] = texts[2]
    measured = measure_diversity(texts, organic=organic, block_words=10_000)
    for n, value in ((1, measured.distinct_1), (2, measured.distinct_2), (3, measured.distinct_3)):
        grams = [gram for text in texts for gram in _ngrams(text, n)]
        assert value == pytest.approx(len(set(grams)) / len(grams))
    for n, value in ((4, measured.overlap_4), (8, measured.overlap_8)):
        known = {gram for text in organic for gram in _ngrams(text, n)}
        grams = [gram for text in texts for gram in _ngrams(text, n)]
        assert value == pytest.approx(sum(gram in known for gram in grams) / len(grams))
        assert value is not None and value > 0


def test_ngrams_do_not_cross_from_one_text_into_the_next() -> None:
    organic = ["one two three four five six seven eight"]
    halves = measure_diversity(["one two three", "four five six seven eight"], organic=organic)
    assert halves.overlap_8 is None
    assert halves.overlap_4 == 1.0  # only the second text has any
    assert measure_diversity(["a b", "b a"]).distinct_2 == 1.0


def test_distinct_does_not_fall_merely_because_there_is_more_text() -> None:
    short, long = _texts(4, 500, seed=3), _texts(80, 500, seed=3)
    few, many = measure_diversity(short, block_words=1000), measure_diversity(long, block_words=1000)
    assert few.distinct_2 is not None and many.distinct_2 is not None
    assert many.distinct_2 == pytest.approx(few.distinct_2, abs=0.01)
    unblocked = measure_diversity(long, block_words=10**9).distinct_2
    assert unblocked is not None and unblocked < few.distinct_2 - 0.02


def test_order_case_and_punctuation_of_texts_do_not_matter_to_overlap() -> None:
    organic = ["The balance has been applied to the public debt, of which no part will remain."]
    copied = ["the BALANCE has been applied to the public debt of which no part"]
    assert measure_diversity(copied, organic=organic).overlap_8 == 1.0


def test_compression_ratio_is_bytes_over_zlib_bytes_and_rises_with_repetition() -> None:
    varied, repeated = _texts(10, 80, seed=5), _texts(1, 80, seed=5) * 10
    raw = "\n".join(varied).encode()
    measured = measure_diversity(varied).compression_ratio
    assert measured == pytest.approx(len(raw) / len(zlib.compress(raw, 9)))
    worse = measure_diversity(repeated).compression_ratio
    assert measured is not None and worse is not None and worse > 2 * measured


def test_lengths_count_words_characters_and_bytes() -> None:
    measured = measure_diversity(["naïve café", "don't stop now"])
    assert (measured.texts, measured.words, measured.utf8_bytes) == (2, 5, 26)
    assert measured.mean_words == 2.5
    assert measured.mean_chars == 12.0


def test_nothing_to_measure_gives_no_ratio() -> None:
    for texts in ([], [""], ["..."]):
        measured = measure_diversity(texts, organic=["some text that is long enough to hold eight words"])
        assert measured.words == 0
        assert measured.distinct_1 is None and measured.overlap_4 is None
    assert measure_diversity([]).compression_ratio is None


def test_a_lone_surrogate_is_measured_like_any_character() -> None:
    assert measure_diversity(["broken \ud800 text"]).words == 2


def test_organic_text_passes_by_and_the_overlap_does_not_depend_on_how_it_is_dealt() -> None:
    rng = np.random.default_rng(2)
    texts, organic = ([" ".join(map(str, rng.integers(0, 9, 30))) for _ in range(n)] for n in (20, 700))
    whole = measure_diversity(texts, organic=organic)
    passed: list[int] = []

    def passing() -> Iterator[str]:
        for number, text in enumerate(organic):
            passed.append(number)
            yield text

    assert measure_diversity(texts, organic=passing()) == whole and passed == list(range(700))
    grams = [tuple(text.split()[i : i + 4]) for text in texts for i in range(27)]
    known = {tuple(text.split()[i : i + 4]) for text in organic for i in range(27)}
    assert whole.overlap_4 == pytest.approx(sum(gram in known for gram in grams) / len(grams))


def test_as_much_organic_text_is_held_at_a_time_whether_it_comes_in_short_texts_or_in_books() -> None:
    rng = random.Random(6)
    page = " ".join(rng.choices(VOCABULARY, k=400))
    texts, peaks = _texts(5, 60, seed=1), list[int]()
    measure_diversity(texts)  # what is made once in a process
    for pages in (1, 20):
        tracemalloc.start()
        measure_diversity(texts, organic=(f"{number} {page * pages}" for number in range(3200 // pages)))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 2 * peaks[0]


def test_repetition_between_texts_equals_looking_at_each_pair_and_repetition_within_one_is_none() -> None:
    texts = _texts(6, 40, seed=5)
    texts[1] = texts[4][:120] + " other words behind it"
    texts[2] = " ".join([texts[2][:90]] * 3)
    found, total = 0, 0
    for number, text in enumerate(texts):
        others = {gram for place, other in enumerate(texts) if place != number for gram in _ngrams(other, 8)}
        found += sum(gram in others for gram in _ngrams(text, 8))
        total += len(_ngrams(text, 8))
    assert measure_diversity(texts).repeated_8 == pytest.approx(found / total) and found
    assert measure_diversity(["a b c d e f g h a b c d e f g h"]).repeated_8 == 0.0
    assert measure_diversity(["too short"]).repeated_8 is None


def test_about_a_tenth_of_other_words_of_the_organic_kind_is_rare_and_fewer_where_the_tail_is_lost() -> None:
    rng = random.Random(3)
    weights = [1 / (rank + 1) for rank in range(len(VOCABULARY))]
    organic, other = ([" ".join(rng.choices(VOCABULARY, weights, k=200)) for _ in range(50)] for _ in range(2))
    common = common_words(organic)
    of_other = measure_diversity(other, common=common).rare_words
    assert of_other == pytest.approx(0.1, abs=0.02)
    collapsed = [" ".join(rng.choices(VOCABULARY[:100], weights[:100], k=200)) for _ in range(50)]
    assert measure_diversity(collapsed, common=common).rare_words == 0.0
    assert measure_diversity(["wholly unheard of"], common=common).rare_words == 1.0
    assert measure_diversity(organic).rare_words is None
