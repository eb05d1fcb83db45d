"""Each filter removes the texts that were planted for it, and no others; counts add up."""

import random
from collections import Counter
from dataclasses import replace

import pytest

from synpro_engine.config import UserError
from synpro_engine.synth import BestConfig, FilterConfig, FilterReport, Filters, Made

WORDS = [f"{a}{b}" for a in "bad cor del fin gul hem".split() for b in "an el ir om us yt".split()]


def prose(seed: int, words: int = 60) -> str:
    return " ".join(random.Random(seed).choices(WORDS, k=words))


def made(name: str, text: str, source: str = "", **rewards: float) -> Made:
    return Made(id=name, text=text, source=source, rewards=rewards)


GOOD = [made(f"good {seed}", prose(seed), prose(100 + seed), quality=0.5, influence=0.5) for seed in range(8)]


def filtered(
    config: FilterConfig, texts: list[Made], held_out: list[str] | None = None
) -> tuple[set[str], FilterReport]:
    """The ids of what is removed, and the report."""
    told: dict[str, str] = {}
    filters = Filters(config, held_out or (), lambda one, name, why: told.update({one.id: name}))
    if filters.surveys:
        filters.survey("rephrase", texts)
    kept = [one.id for one in filters.pass_through("rephrase", texts)]
    assert kept == [one.id for one in texts if one.id in kept]
    report = filters.report
    [one] = report.by_operation.values()
    assert one.kept == len(kept) and one.kept + sum(one.removed.values()) == len(texts)
    assert told.keys() == {one.id for one in texts} - set(kept) and Counter(told.values()) == one.removed
    return {one.id for one in texts} - set(kept), report


HELD_OUT = prose(500, 200)
CASES = {
    "length": (FilterConfig(min_chars=20, max_chars=1000), [made("short", "A few."), made("long", prose(1, 400))]),
    "repetition": (FilterConfig(max_repetition=0.3), [made("loop", "again and then " * 30)]),
    "copy": (
        FilterConfig(max_copied=0.5),
        [made("copied", f"{prose(20)} {prose(21, 5)}", f"{prose(22)} {prose(20)} {prose(23)}")],
    ),
    "leak": (
        FilterConfig(max_leaked=0.0),
        [made("leaked", f"{prose(30)} {' '.join(HELD_OUT.split()[50:63])} {prose(31)}")],
    ),
    "quality": (FilterConfig(quality_quantile=0.1), [made("worst", prose(40), quality=0.1)]),
    "influence": (FilterConfig(influence_quantile=0.1), [made("harms", prose(41), influence=-2.0)]),
}


@pytest.mark.parametrize("name", CASES)
def test_a_filter_removes_exactly_the_planted_texts(name: str) -> None:
    config, bad = CASES[name]
    texts = [*GOOD[:4], *bad, *GOOD[4:]]
    # The quantiles are of nine or ten texts and more: a tenth of them is one.
    texts += [made("good 9", prose(9), prose(109), quality=0.5, influence=0.5)]
    removed, report = filtered(config, texts, (HELD_OUT,))
    assert removed == {one.id for one in bad}
    assert report.by_operation["rephrase"].removed == {name: len(bad)}
    shown = report.by_operation["rephrase"].samples[name]
    assert [one.id for one in shown] == [one.id for one in bad] and all(one.why for one in shown)


def test_without_settings_every_text_stays() -> None:
    bad = [text for _, texts in CASES.values() for text in texts]
    assert not FilterConfig().any and filtered(FilterConfig(), [*GOOD, *bad], (HELD_OUT,))[0] == set()


def test_a_text_that_several_filters_would_remove_counts_once_and_three_of_each_are_shown() -> None:
    config = FilterConfig(min_chars=20, max_repetition=0.3, max_copied=0.5, max_leaked=0.0)
    planted = {"length": "short", "repetition": "loop", "copy": "copied", "leak": "leaked"}
    texts = {one.id: one for _, some in CASES.values() for one in some}
    bad = [made(f"{name} {n}", texts[name].text, texts[name].source) for n in range(5) for name in planted.values()]
    loop = made("a copied loop", texts["loop"].text, texts["loop"].text)
    removed, report = filtered(config, [*GOOD, *bad, loop], (HELD_OUT,))
    assert removed == {one.id for one in (*bad, loop)}
    one = report.by_operation["rephrase"]
    assert one.removed == {name: 6 if name == "repetition" else 5 for name in planted}
    assert {name: len(shown) for name, shown in one.samples.items()} == dict.fromkeys(planted, 3)


def test_texts_without_words_or_too_short_for_an_ngram_are_left_to_the_length() -> None:
    config = FilterConfig(max_repetition=0.0, max_copied=0.0, max_leaked=0.0)
    assert filtered(config, [made("dots", "..."), made("two", "two words", "two words")], (HELD_OUT,))[0] == set()


def test_near_duplicates_of_kept_texts_and_of_slices_are_removed() -> None:
    pytest.importorskip("rensa")
    words = prose(0, 200).split()
    nearly, slice_of_another = " ".join([*words[:-2], "other", "end"]), prose(103, 200)
    texts = [
        made("first", " ".join(words), prose(101, 200)),
        made("nearly the first", nearly, prose(102, 200)),
        made("another's slice", slice_of_another, prose(104, 200)),
        made("half of the first", " ".join([*words[:100], *prose(5, 100).split()]), slice_of_another),
        made("no words", "...", "..."),
    ]
    removed, _ = filtered(FilterConfig(near_duplicate=0.7), texts)
    assert removed == {"nearly the first", "another's slice"}


def test_a_text_in_another_language_than_its_slice_is_removed() -> None:
    pytest.importorskip("py3langid")
    english = "The mill on the river burned down in the spring of 1911, and the town built a larger one in its place. "
    german = "Die Mühle am Fluss brannte im Frühling des Jahres 1911 ab, und die Stadt baute dafür eine neue. "
    texts = [
        made("kept", english * 2, english),
        made("kept too", german * 2, german * 2),
        made("translated", german * 2, english),
        made("too short", "Die Mühle.", english),
    ]
    assert filtered(FilterConfig(same_language=True), texts)[0] == {"translated"}


def test_a_filter_whose_library_is_missing_is_told_of_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    FilterConfig().check_libraries()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    FilterConfig(min_chars=1).check_libraries()
    with pytest.raises(UserError, match=r"`filter\.near_duplicate`: rensa .* pip install"):
        FilterConfig(near_duplicate=0.8).check_libraries()


def test_a_quantile_is_of_one_operation() -> None:
    filters = Filters(FilterConfig(quality_quantile=0.5))
    of = {
        "rephrase": [made(f"a{n}", prose(n), quality=n / 10) for n in range(4)],
        "reformat": [made(f"b{n}", prose(n), quality=n + 5.0) for n in range(4)],
    }
    for operation, texts in of.items():
        filters.survey(operation, texts)
    kept = [one.id for operation, texts in of.items() for one in filters.pass_through(operation, texts)]
    assert kept == ["a2", "a3", "b2", "b3"]


SLICES = [
    made(f"doc:{at}-{at + 9}:rephrase:{member}", prose(10 * at + member), influence=value)
    for at, values in ((0, (0.1, 0.7, 0.3)), (9, (0.2, 0.2, -1.0)), (18, (0.4,)))
    for member, value in enumerate(values)
]
NUMBERED = [replace(one, number=number) for number, one in enumerate(SLICES)]


@pytest.mark.parametrize(
    ("best", "kept"),
    [
        (BestConfig(), [1, 3, 6]),
        (BestConfig(keep=2), [1, 2, 3, 4, 6]),
        (BestConfig(by=None), [0, 3, 6]),
        (BestConfig(by="unmeasured"), [0, 3, 6]),
    ],
    ids=["best", "two best, the first of equal ones", "the first", "without the reward"],
)
def test_the_best_of_a_slices_texts_stay(best: BestConfig, kept: list[int]) -> None:
    removed, report = filtered(FilterConfig(best=best), NUMBERED)
    assert {one.id for one in NUMBERED} - removed == {NUMBERED[number].id for number in kept}
    assert report.by_operation["rephrase"].removed == {"best": len(NUMBERED) - len(kept)}
