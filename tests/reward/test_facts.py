"""A number, a name and a date are planted where the text has none of them, and found however they are written."""

from dataclasses import replace

import pytest

from synpro_engine.reward.facts import KINDS, Planted, plant_facts
from synpro_engine.reward.planted import sentences
from tests.reward.test_planted import TEXT

TOLD = Planted(text="", number=412, name="Kessel", year=1887, month=9, day=3)


@pytest.mark.parametrize("seed", range(8))
def test_one_sentence_is_added_with_facts_that_stand_nowhere_else(seed: int) -> None:
    found = plant_facts(TEXT, f"slice {seed}")
    assert found is not None and found == plant_facts(TEXT, f"slice {seed}")
    assert set(sentences(TEXT)) < set(sentences(found.text)) and found.text.count("\n\n") == TEXT.count("\n\n")
    assert list(found.kept_by(found.text)) == list(KINDS) and all(found.kept_by(found.text).values())
    assert not any(found.kept_by(TEXT).values())


def test_slices_have_facts_of_their_own_and_a_text_that_has_all_names_takes_none() -> None:
    facts = [replace(found, text="") for n in range(20) if (found := plant_facts(TEXT, str(n))) is not None]
    assert len(set(facts)) == 20
    assert plant_facts("Thornbury, Kessel, Whitlock, Marchetti and Ostrow met here.", "a") is None
    assert plant_facts("", "a") is None


@pytest.mark.parametrize(
    "written",
    ["3 September 1887", "September 3, 1887", "the 3rd of September, 1887", "Sept. 3rd 1887", "on 1887-09-03.",
     "SEPTEMBER 3rd, 1887", "the 3rd day of September 1887", "03 Sep 1887"],
)  # fmt: skip
def test_a_date_is_found_in_any_usual_order(written: str) -> None:
    assert TOLD.kept_by(f"It was signed {written}") == {"number": False, "name": False, "date": True}


@pytest.mark.parametrize("written", ["September 1887", "13 September 1887", "3 October 1887", "3 September 18870"])
def test_another_date_is_not_taken_for_it(written: str) -> None:
    assert not TOLD.kept_by(f"It was signed {written}")["date"]


@pytest.mark.parametrize(
    ("written", "number", "name"),
    [("Kessel's 412 men", True, True), ("of 412.", True, False), ("$412, to KESSEL", True, True),
     ("412,000 men", False, False), ("1,412 men", False, False), ("412.5", False, False),
     ("4120 Kesselring", False, False)],
)  # fmt: skip
def test_a_number_is_no_part_of_another_and_a_name_no_part_of_a_word(written: str, number: bool, name: bool) -> None:
    assert TOLD.kept_by(written) == {"number": number, "name": name, "date": False}
