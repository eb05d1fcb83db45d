"""Planted faults are what their names say, and standings tell a judge that sees one from a judge that does not."""

import random
from collections.abc import Sequence

import pytest

from synpro_engine.reward import Candidate, Composer
from synpro_engine.reward.agreement import COPY, planted_pairs, standings
from synpro_engine.reward.entries import JUDGED
from synpro_engine.reward.planted import FAULTS, reworded, sentences

TEXT = (
    "The treaty with Spain was signed upon the 12th of May. It shall give our citizens 340 miles of the coast, which "
    "were held by Florida.\n\nThe Secretary has not asked for 1,200 dollars more. Nothing else was spent by Jackson."
)
OTHER = (
    "Our harvests were good in this year. The farmers of Virginia have sent wheat to Portugal and sold it well there."
)


def _plant(name: str, seed: int = 0) -> str:
    found = FAULTS[name](TEXT, OTHER, random.Random(seed))
    assert found is not None and found != TEXT
    return found


@pytest.mark.parametrize("seed", range(5))
def test_each_fault_changes_what_it_names_and_nothing_else(seed: int) -> None:
    words, parts = TEXT.split(), sentences(TEXT)
    assert len(parts) == 4
    assert sorted(sentences(_plant("sentences shuffled", seed))) == sorted(parts)
    assert sorted(_plant("words shuffled", seed).split()) == sorted(words)
    for name in ("number swapped", "name swapped"):
        changed = [(a, b) for a, b in zip(words, _plant(name, seed).split(), strict=True) if a != b]
        assert len(changed) == 1, name
        assert any(letter.isdigit() for letter in changed[0][1]) == (name == "number swapped")
    contradiction = _plant("contradiction", seed)
    assert contradiction.replace(" not", "", 1).split() == words or contradiction.count(" not") == 2
    assert [part for part in sentences(_plant("invention", seed)) if part in parts] == parts
    for name in FAULTS.keys() - {"off topic", "list for prose", "omission"}:
        assert _plant(name, seed).count("\n\n") == 1, f"{name} leaves the layout"
    assert set(sentences(_plant("omission", seed))) < set(parts)
    assert len(set(sentences(_plant("loop", seed)))) == 1
    assert _plant("list for prose", seed).replace("- ", "").split("\n") == parts
    assert _plant("off topic", seed) == reworded(OTHER)


def test_a_sound_text_says_its_source_in_other_words() -> None:
    assert reworded(TEXT) != TEXT and len(sentences(reworded(TEXT))) == 4
    assert "340" in reworded(TEXT) and "Florida" in reworded(TEXT) and "will" in reworded(TEXT)


def test_a_text_without_a_number_or_a_name_is_left_out_of_these_faults() -> None:
    plain = "nothing is said here by anybody at all. and nothing is heard of it either."
    pairs = planted_pairs([plain, OTHER], seed=1)
    assert "number swapped" not in pairs and len(pairs["name swapped"]) == 1
    assert len(pairs[COPY]) == 1 and planted_pairs([plain, OTHER], seed=1) == pairs


@pytest.mark.parametrize("run", ["9" * 5000, "1,234" * 2000])
def test_a_run_of_digits_that_is_no_number_is_passed_over(run: str) -> None:
    swap = FAULTS["number swapped"]
    assert swap(f"It was {run}.", OTHER, random.Random(0)) is None
    for seed in range(5):
        found = swap(f"It was {run} and 340.", OTHER, random.Random(seed))
        assert found is not None and found.startswith(f"It was {run} and ") and not found.endswith(" 340.")


class Counts:
    """Values a text by its length, and gives none for one text."""

    name, range = "quality", (0.0, 1e6)

    def __init__(self, lost: str) -> None:
        self._lost, self.asked = lost, 0

    def __call__(self, candidates: Sequence[Candidate]) -> list[float]:
        self.asked += len(candidates)
        return [float("nan") if c.parsed.text == self._lost else float(len(c.parsed.text)) for c in candidates]


def test_standings_are_of_sound_above_faulty_with_ties_as_halves() -> None:
    pairs = {
        "omission": [("s", "aaaa", "aa"), ("t", "bbb", "bbbb")],
        "loop": [("s", "aaaa", "dddd"), ("t", "bbb", "lost")],
    }
    judge = Counts("lost")
    found, cost = standings(Composer([judge], {JUDGED: {"quality": 1.0}}), pairs)
    loop, omission = sorted(found, key=lambda s: s.fault)
    assert (omission.auc, omission.agreement, omission.missing) == (0.625, 0.5, 0)
    assert (loop.auc, loop.agreement, loop.missing, loop.pairs) == (0.5, 0.5, 1, 2)
    assert judge.asked == cost["quality"].judged == 6, "a sound text is judged once"
