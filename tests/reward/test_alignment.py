"""The walk of a text along its source is the likeliest one, and each fault shows in the feature of its name."""

import itertools
import re

import numpy as np
import pytest

from synpro_engine.reward import alignment as module
from synpro_engine.reward import answers
from synpro_engine.reward.alignment import ALIGNED, alignment, walk
from synpro_engine.reward.answers import ANSWERED, answer_start, answering
from synpro_engine.reward.tokens import Tokens, Words, clauses, words_of

SOURCE = (
    "The treaty was not signed by the senate before winter. Farmers sold only wheat to merchants from Portugal. "
    "Fermentation turns sugar into alcohol without oxygen."
)
FAULTS = ("held_known", "held_new", "crossed", "backward", "jumps_within", "jumps_between", "limits_skipped",
          "limits_before", "limits_replaced", "limits_added")  # fmt: skip


def _tokens(text: str) -> Tokens:
    """A token for every five letters; its direction is its own, and a little its neighbours', as an encoder's is."""
    spans = [match.span() for match in re.finditer(r"\w{1,5}", text)]
    own = [np.random.default_rng(list(text[a:b].casefold().encode())).normal(size=64) for a, b in spans]
    padded = np.pad(np.reshape(own, (-1, 64)), ((1, 1), (0, 0)))
    vectors_TE = padded[1:-1] + 0.7 * (padded[:-2] + padded[2:])
    unit_TE = (vectors_TE / np.linalg.norm(vectors_TE, axis=1, keepdims=True)).astype(np.float32)
    return Tokens(text, unit_TE, np.array([a for a, _ in spans], np.int64))


def _words(text: str) -> Words:
    return words_of(_tokens(text))


def _odd(text: str) -> dict[str, float]:
    found = alignment(_words(text), _words(SOURCE))
    assert found.keys() == set(ALIGNED)
    return {name: float(found[name]) for name in FAULTS if found[name]}


def test_the_walk_is_the_likeliest_of_all() -> None:
    chance = np.random.default_rng(0)
    for _ in range(20):
        count, wide = chance.integers(1, 5), chance.integers(1, 7)
        worth_WV, begins_W = chance.normal(size=(count, wide)), chance.random(count) < 0.3

        def value(path: tuple[int, ...], worth_WV: np.ndarray = worth_WV, begins_W: np.ndarray = begins_W) -> float:
            steps = zip(itertools.pairwise(path), begins_W[1:], strict=True)
            costs = [0.0 if begins else module._COSTS.get(b - a, module._FAR) for (a, b), begins in steps]
            return sum(worth_WV[i, at] for i, at in enumerate(path)) - sum(costs)

        best = max(map(value, itertools.product(range(wide), repeat=int(count))))
        assert value(tuple(module._likeliest(worth_WV, begins_W).tolist())) == pytest.approx(best)


@pytest.mark.parametrize(
    ("text", "odd"),
    [
        ("Farmers sold only wheat to merchants from Portugal.", {}),
        ("Farmers sold only wheat.", {}),
        ("A topic of wheat\nFarmers sold only wheat to merchants.", {}),
        ("Farmers sold only cotton to merchants from Portugal.", {"held_new": 1}),
        ("Farmers sold only alcohol to merchants from Portugal.", {"held_known": 1}),
        ("Farmers sold only merchants to wheat from Portugal.", {"backward": 2}),
        ("Farmers sold wheat to merchants from Portugal.", {"limits_skipped": 1}),
        ("Fermentation never turns sugar into alcohol.", {"limits_added": 1}),
        ("Farmers sold some wheat to merchants.", {"limits_replaced": 1}),
        ("signed by the senate before winter.", {"limits_before": 1}),
        ("The treaty was not signed by merchants from Portugal.", {"jumps_between": 1}),
    ],
)
def test_what_is_odd_about_a_text_shows_and_nothing_else(text: str, odd: dict[str, float]) -> None:
    assert _odd(text) == odd


def test_a_word_that_the_source_lacks_falls_on_the_word_whose_place_it_took() -> None:
    text, source = _words("Farmers sold only cotton to merchants."), _words(SOURCE)
    found = walk(text, source)
    assert [source.said[at] for at in found.at_W] == ["Farmers", "sold", "only", "wheat", "to", "merchants"]
    assert found.same_W.tolist() == [True, True, True, False, True, True]


def _answer(text: str) -> dict[str, float]:
    start = answer_start(text)
    assert start is not None
    found = answering(_words(text), _words(SOURCE), start)
    assert found.keys() == set(ANSWERED)
    return found


def test_an_answer_is_held_against_the_place_that_the_question_is_about(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answers, "_WINDOW", 4)
    asked = "What does fermentation turn sugar into?"
    right, elsewhere, nowhere = (_answer(f"{asked} {answer}") for answer in ("Alcohol", "Wheat", "Vinegar"))
    assert right["answer_found"] == right["answer_exact"] == elsewhere["answer_exact"] == 1.0
    assert nowhere["answer_found"] == nowhere["answer_exact"] == 0.0
    assert (
        right["answer_where_asked"] > elsewhere["answer_where_asked"] and right["answer_mean"] > nowhere["answer_mean"]
    )
    assert right["answer_apart"] == 0.0 < elsewhere["answer_apart"]
    assert _answer(f"{asked}\nSugar")["answer_repeats"] == 1.0
    assert _answer("Is alcohol made? Yes, without oxygen.")["asked_polar"] == 1.0


@pytest.mark.parametrize("text", ["No question is here.", "And who asks this?", "Who? Why? And where?", ""])
def test_what_has_no_answer_is_none(text: str) -> None:
    assert answer_start(text) is None


def test_a_word_is_the_mean_of_its_tokens_and_one_without_tokens_is_left_out() -> None:
    tokens = _tokens("Fermentation isn't 12,000 years old. Nor\nnew")
    words = words_of(tokens)
    assert words.said == ["Fermentation", "isn't", "12,000", "years", "old", "Nor", "new"]
    assert words.stems[:3] == ["ferme", "isn't", "12000"] and words.clause_W.tolist() == [0, 0, 0, 0, 0, 1, 2]
    assert words.limits_W.tolist() == [False, True, False, False, False, True, False]
    mean = tokens.vectors_TE[:3].mean(0)
    assert np.allclose(words.vectors_WE[0], mean / np.linalg.norm(mean), atol=1e-6)
    without = Tokens(tokens.text, tokens.vectors_TE[3:], tokens.starts_T[3:])
    assert words_of(without).said == words.said[1:]


def test_clauses_of_a_text_are_the_whole_of_it() -> None:
    assert clauses("One: two. Three\nfour") == [(0, "One: "), (5, "two. "), (10, "Three\n"), (16, "four")]
    assert clauses("") == [(0, "")]
