import random

import pytest

from synpro_engine.reward import AntiCopyReward, Candidate, FormatReward, LengthReward, StructureReward, structure_match
from synpro_engine.synth import REFORMAT, REPHRASE

SOURCE = (
    "# The mill\n\nThe mill at Harwick burned down in spring, and nobody knew why.\n\n"
    "Its owner:\n- rebuilt it\n- hired workers\n\nThe town had no other employer."
)


def _candidate(text: str, source: str = SOURCE) -> Candidate:
    raw = f"{REPHRASE.heading}\n{text}"
    return Candidate(operation="rephrase", source=source, raw=raw, parsed=REPHRASE.parse(raw))


def test_copying_is_penalised_and_new_words_are_not() -> None:
    words = "the river rose before winter and many workers lost their homes near a burning mill in town".split()
    other = "one flood destroyed houses of countless labourers; afterwards cold months began, bringing further misery"
    source = " ".join(words)
    shuffled = " ".join(random.Random(0).sample(words, len(words)))
    copy, half, disordered, new = AntiCopyReward()(
        [_candidate(t, source) for t in (source, " ".join(words[:8]) + " " + other, shuffled, other)]
    )
    assert copy == pytest.approx(-0.4)
    assert half == disordered == new == 0.0
    assert AntiCopyReward(allowed=0.2)([_candidate(other + " " + source, source)])[0] < 0.0


def test_length_pays_for_any_text_up_to_a_quarter_longer() -> None:
    source = "x" * 100
    values = LengthReward()([_candidate("y" * n, source) for n in (20, 100, 125, 126, 400)] + [_candidate("", source)])
    assert values == [1.0, 1.0, 1.0, 0.0, 0.0, 0.0]


def test_format_pays_for_one_heading_to_the_letter_and_for_nothing_else_that_could_be_read() -> None:
    text = "The mill at Harwick was lost."
    texts = [text, "", "[insert text here]", f"{REPHRASE.heading}\n{text}", f"{text}\n\n{REFORMAT.heading}\n- Topic: a"]
    candidates = [_candidate(text) for text in texts]
    assert [candidate.parsed.ok for candidate in candidates] == [True, False, False, True, True]
    assert FormatReward()(candidates) == [1.0, 0.0, 0.0, 0.0, 0.0]


def test_the_same_layout_in_other_words_scores_one() -> None:
    same = (
        "# A lost mill\n\nFire took it when winter ended.\n\nHer deeds:\n* it stands again\n* people found work\n\n"
        "Nobody else gave them any."
    )
    assert StructureReward()([_candidate(same)]) == [1.0]


def test_structure_falls_with_each_thing_lost() -> None:
    lines = SOURCE.split("\n")
    no_list = "\n".join(line.removeprefix("- ") for line in lines)
    no_paragraphs = SOURCE.replace("\n\n", "\n")
    one_line = " ".join(SOURCE.split())
    assert 1.0 > structure_match(no_paragraphs, SOURCE) > structure_match(one_line, SOURCE)
    assert 1.0 > structure_match(no_list, SOURCE) > structure_match(one_line, SOURCE) >= 0.0
    assert structure_match("- a b\n- c d\n- e f", "one paragraph of prose") == 0.0
    assert structure_match("verse one\nverse two\nverse three", "verse one verse two verse three") == 0.75


def test_structure_takes_any_text() -> None:
    rng = random.Random(1)
    pieces = ["\n", "\n\n", "- ", "1. ", "# ", "|", "\t", "word ", "WORD:", "\x00", "\u2028", "é"]
    for _ in range(300):
        a, b = ("".join(rng.choices(pieces, k=rng.randrange(30))) for _ in range(2))
        assert 0.0 <= structure_match(a, b) <= 1.0
        assert structure_match(a, a) == 1.0
