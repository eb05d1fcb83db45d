import importlib.util
from collections.abc import Sequence

import pytest

from synpro_engine.config import UserError, load_config
from synpro_engine.reward import Candidate, Composer, RewardConfig, build_composer
from synpro_engine.synth import OPERATIONS, Parsed

SOURCE = "The river rose in spring and the workers of the town left their homes before the water came. " * 3
NO_WHEEL = {
    "rephrase": {"influence": 3.0, "quality": 1.0, "structure": 1.0, "length": 1.0, "format": 1.0, "anti_copy": 2.0},
    "reformat": {"influence": 3.0, "format": 0.5, "similarity": 0.0},
}


def _candidate(operation: str, body: str) -> Candidate:
    raw = f"{OPERATIONS[operation].heading}\n{body}"
    return Candidate(operation=operation, source=SOURCE, raw=raw, parsed=OPERATIONS[operation].parse(raw))


def _vowels(texts: Sequence[str], ids: Sequence[Sequence[int] | None] = ()) -> list[float]:
    return [sum(letter in "aeiou" for letter in text) / len(text) for text in texts]


def _composer(config: RewardConfig) -> Composer:
    return build_composer(config, influence_of=_vowels, likelihood_of=lambda texts: [9 * v for v in _vowels(texts)])


CONFIG = load_config(RewardConfig, {**NO_WHEEL, "influence_min_chars": 10})
GOOD = [
    _candidate("rephrase", "When spring came the water rose, and those who worked in town had already gone away."),
    _candidate("rephrase", SOURCE),
    _candidate("rephrase", SOURCE * 2),
    _candidate("reformat", "- Topic: The flood. Content: People left before the river came."),
]
BAD = [
    Candidate(operation="rephrase", source=SOURCE, raw=SOURCE, parsed=Parsed(ok=False, text=SOURCE)),
    _candidate("rephrase", f"{SOURCE}\nHere is a paraphrased version:\n{SOURCE}"),
    _candidate("rephrase", ""),
    _candidate("reformat", SOURCE),
]


def test_a_wrong_format_earns_zero_everywhere() -> None:
    table = _composer(CONFIG).score([*BAD, *GOOD])
    for name, values in table.parts.items():
        assert values[: len(BAD)] == [0.0] * len(BAD), name
    assert table.total[: len(BAD)] == [0.0] * len(BAD)
    assert all(value != 0.0 for value in table.total[len(BAD) :])


def test_records_of_generation_measure_whatever_was_read() -> None:
    [row] = _composer(CONFIG).rows([BAD[1]])
    [exact] = _composer(CONFIG).rows([GOOD[1]])
    assert BAD[1].parsed.text == GOOD[1].parsed.text
    assert row["format"] == 0.0 and exact["format"] == 1.0
    assert row["total"] == pytest.approx(exact["total"] - 1.0)


def test_the_total_is_the_weighted_sum_of_the_parts() -> None:
    table = _composer(CONFIG).score(GOOD)
    for i, candidate in enumerate(GOOD):
        weights = CONFIG.weights(candidate.operation)
        expected = sum(weights.get(name, 0.0) * values[i] for name, values in table.parts.items())
        assert table.total[i] == pytest.approx(expected)
    assert table.parts["length"][3] == 0.0, "reformat gives length no weight"
    assert table.parts["length"][:3] == [1.0, 1.0, 0.0]
    assert table.parts["anti_copy"][1] == pytest.approx(-0.4)


def test_scores_do_not_depend_on_the_other_candidates() -> None:
    composer = _composer(CONFIG)
    together = composer.score([*GOOD, *BAD])
    for i, candidate in enumerate([*GOOD, *BAD]):
        alone = _composer(CONFIG).score([candidate])
        assert alone.total == [pytest.approx(together.total[i])]
        assert {n: v[0] for n, v in alone.parts.items()} == pytest.approx({n: v[i] for n, v in together.parts.items()})


def test_rows_name_what_was_weighted() -> None:
    rows = _composer(CONFIG).rows(GOOD)
    assert set(rows[0]) == {*NO_WHEEL["rephrase"], "total"}
    assert set(rows[3]) == {"influence", "format", "total"}
    assert rows[0]["total"] == _composer(CONFIG).score(GOOD).total[0]
    assert set(_composer(CONFIG).rows(GOOD, total=False)[3]) == {"influence", "format"}


def test_a_reward_without_weight_needs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name.startswith("gt_all") else real(name, *rest)
    )
    bare = load_config(RewardConfig, {"rephrase": {"format": 1.0, "influence": 0.0}, "reformat": {"format": 1.0}})
    composer = build_composer(bare, influence_of=None, likelihood_of=None)
    assert composer.score(GOOD).total == [1.0] * 4
    with pytest.raises(UserError, match="pip install"):
        build_composer(load_config(RewardConfig, {"rephrase": {"similarity": 1.0}, "reformat": {}}),
                       influence_of=None, likelihood_of=None)  # fmt: skip
    with pytest.raises(UserError, match="`influence` has a weight"):
        build_composer(CONFIG, influence_of=None, likelihood_of=_vowels)


def test_an_unknown_reward_names_the_nearest() -> None:
    with pytest.raises(UserError, match=r"no reward `similarty` \(did you mean `similarity`"):
        load_config(RewardConfig, {"rephrase": {"similarty": 1.0}})
    with pytest.raises(UserError, match=r"`rephrase.format`: Input should be a finite number"):
        load_config(RewardConfig, {"rephrase": {"format": float("nan")}})
    with pytest.raises(UserError, match=r"`reformat.format`: Input should be less than or equal to 1000000"):
        load_config(RewardConfig, {"reformat": {"format": 1e308}})
    with pytest.raises(UserError, match="no reward `lenght`"):
        Composer([], {"rephrase": {"lenght": 1.0}})


def test_the_default_weights_are_the_papers_and_an_anti_copy_term() -> None:
    shared = {"influence": 3.0, "quality": 1.0, "format": 1.0, "anti_copy": 1.0}
    assert RewardConfig().weights("rephrase") == {**shared, "similarity": 1.0, "structure": 1.0, "length": 1.0}
    assert RewardConfig().weights("reformat") == {**shared, "faithfulness": 1.0}
