import random

from synpro_engine.reward import distinct_ngrams, rouge_l_precision, unsupported_places, unsupported_share
from synpro_engine.reward.words import common_subsequence, stated_facts, words

SOURCE = (
    "In 1871 the mill at Harwick, owned by Anna Pell, burned down. She borrowed 12,000 pounds from a bank and hired "
    "forty workers. The town's other mill had closed 3 years before."
)


def _by_definition(a: list[str], b: list[str]) -> int:
    table = [[0] * (len(b) + 1) for _ in range(len(a) + 1)]
    for i, x in enumerate(a):
        for j, y in enumerate(b):
            table[i + 1][j + 1] = table[i][j] + 1 if x == y else max(table[i][j + 1], table[i + 1][j])
    return table[-1][-1]


def test_the_longest_common_subsequence_is_that_of_the_definition() -> None:
    rng = random.Random(0)
    for _ in range(200):
        a, b = (rng.choices("abcdef", k=rng.randrange(90)) for _ in range(2))
        assert common_subsequence(a, b) == _by_definition(a, b)


def test_a_copy_has_precision_one_and_other_words_none() -> None:
    assert rouge_l_precision(SOURCE, SOURCE) == 1.0
    assert rouge_l_precision("Completely different vocabulary", SOURCE) == 0.0
    assert rouge_l_precision("", SOURCE) == rouge_l_precision("...", SOURCE) == 0.0


def test_numbers_and_names_that_the_source_has_are_supported_in_any_spelling() -> None:
    assert (
        unsupported_share("For 40 workers, Pell's bank lent 12000 pounds; Harwick had three bad years.", SOURCE) == 0.0
    )
    assert unsupported_share("The workers of The Town were hired in the MILL.", SOURCE) == 0.0
    assert unsupported_share("no facts at all here", SOURCE) == 0.0


def test_words_of_scripts_whose_vowels_are_marks_are_whole() -> None:
    """Hindi, pointed Arabic and an accent apart; a mark on a sign is no word."""
    assert words("हिन्दी में लिखा") == ["हिन्दी", "में", "लिखा"]
    assert words("كَتَبَ, Ne\u0301 \u2764\ufe0f") == ["كَتَبَ", "ne\u0301"]
    # In pieces between the signs three of seven are the source's, in its order.
    assert rouge_l_precision("किताब मेज पर है", "काला बैल सड़क पर") == 0.25


def test_numbers_and_names_that_the_source_lacks_are_counted() -> None:
    assert unsupported_share("It burned in 1872.", SOURCE) == 1.0
    assert unsupported_share("In 1871 and 1999 the mill of Pell and Browning burned.", SOURCE) == 0.5


def test_the_first_word_of_a_sentence_is_no_name() -> None:
    assert stated_facts('Rivers rose. Mills burned!\n"Winters" passed.\n- Towns fell: Bankers fled.') == set()
    assert stated_facts("then Rivers rose in 3 towns") == {"rivers", "3"}


def test_repetition_lowers_distinct_ngrams() -> None:
    assert distinct_ngrams(SOURCE) == 1.0
    assert distinct_ngrams("a law is coming. " * 20) < 0.1
    assert distinct_ngrams("") == 0.0
    assert distinct_ngrams("two words") == 1.0


def test_unsupported_places_are_whole_words_in_order_and_hold_all_that_is_unsupported() -> None:
    text = "It burned on the 9th of May; Pell (of Pell's bank) saw it, and so did Browning's B2B in 1871."
    places = unsupported_places(text, "Pell saw it burn in 1871.")
    assert [text[place.start : place.end] for place in places] == ["9th", "May", "Browning's", "B2B"]
    assert unsupported_places(text, text) == []
