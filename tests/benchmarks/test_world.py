"""The world of facts: what its texts say, who is asked about where, and what tuning makes of rewards."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.world import ranking, trainings
from benchmarks.world.__main__ import main
from benchmarks.world.page import unique_curve
from benchmarks.world.ranking import BASE, HORIZONS, NAMES
from benchmarks.world.ranking_page import horizons, scores
from benchmarks.world.rephraser import ACTIONS, Rephraser, judged, within_groups
from benchmarks.world.spread import components
from benchmarks.world.study import COPIES
from benchmarks.world.world import EOS, FORMS, PEOPLE, VOCABULARY, Text, World, corpus
from synpro_engine.config import json_text
from synpro_engine.dist import ParallelConfig, launched


@pytest.fixture(scope="module")
def world() -> World:
    return World(3)


@pytest.mark.parametrize("form", FORMS)
def test_every_form_tells_the_person_s_values_and_no_other(world: World, form: str) -> None:
    known = {world.said(5, relation) for relation in range(4)}
    text = world.say(5, form, 2, world.draws("test"))
    told = {word for word, value in zip(text.words, text.values, strict=True) if value}
    assert told == (set() if form == "noise" else known if form != "one fact" else told & known) and text.right == 1.0
    assert len(told) == {"noise": 0, "one fact": 1}.get(form, len(known))
    assert text.words[-1] == EOS and all(0 <= word < VOCABULARY for word in text.words)


def test_careless_rephrasings_have_values_that_are_not_the_person_s(world: World) -> None:
    rng = world.draws("test")
    texts = [world.say(5, "copy", 0, rng, wrong=0.3) for _ in range(400)]
    assert np.mean([text.right for text in texts]) == pytest.approx(0.7, abs=0.04)
    known = {world.said(5, relation) for relation in range(4)}
    for text in texts:
        values = [word for word, value in zip(text.words, text.values, strict=True) if value]
        assert np.mean([value in known for value in values]) == text.right


def test_more_of_the_organic_text_begins_with_less_of_it_and_asks_about_no_one_who_is_held_out(world: World) -> None:
    assert world.organic(3)[: len(world.organic(1))] == world.organic(1)
    asked = {text.person for text in world.organic(8)[PEOPLE:] if text.words[:1] == world.asked([0])[0].words[:1]}
    assert asked == set(world.told) and not asked & {*world.reference, *world.validation}
    assert sorted([*world.told, *world.reference, *world.validation]) == list(range(PEOPLE))


def test_the_curve_counts_distinct_documents_alone_for_most_of_more_text_is_the_same_word_for_word(
    world: World,
) -> None:
    for copies in (1, 2, 8):
        counted: list[Text] = []
        for text in world.organic(copies):
            counted += [text] if all(text.words != other.words for other in counted) else []
        assert world.distinct_tokens(copies) == sum(len(text.words) for text in counted)
    drawn = [sum(len(text.words) for text in world.organic(copies)) for copies in (1, 8)]
    assert world.distinct_tokens(1) == drawn[0] and world.distinct_tokens(8) < 0.3 * drawn[1]


def test_the_curve_that_multiples_are_read_off_has_the_distinct_tokens_of_its_worlds() -> None:
    curve = unique_curve(_study(4.0))
    assert curve is not None
    for tokens, copies in zip(curve.tokens, (1, *COPIES), strict=True):
        assert tokens == np.mean([World(seed).distinct_tokens(copies) for seed in (1, 2, 3)])


def test_of_held_out_questions_the_values_alone_are_targets(world: World) -> None:
    found = corpus(world.asked(world.validation), values_alone=True)
    assert found.num_learnt == 4 * len(world.validation) and corpus(world.organic()).learnt is None


def test_tuning_finds_the_action_that_is_rewarded_and_judges_alone_find_no_form(world: World) -> None:
    sources = world.organic()[:PEOPLE]
    wanted = ACTIONS.index(("questions", "careful"))

    def rewards(texts: Sequence[Text], actions: Sequence[int], rng: np.random.Generator) -> dict[str, list[float]]:
        return {**judged(texts, actions, rng), "influence": [float(action == wanted) for action in actions]}

    judges = {"quality": 1.0, "faithfulness": 1.0}
    tuned, plain = Rephraser.prompted(), Rephraser.prompted()
    tuned.tune(world, sources, rewards, {**judges, "influence": 1.0}, 30)
    plain.tune(world, sources, judged, judges, 30)
    assert tuned.probabilities[wanted] > 0.5 > 0.3 > plain.probabilities[wanted]
    careful = [number for number, (_, care) in enumerate(ACTIONS) if care == "careful"]
    assert plain.probabilities[careful].sum() > 0.8


def test_the_placebo_keeps_each_group_s_rewards(world: World) -> None:
    rewards = np.arange(4.0 * Rephraser.group)
    found = np.reshape(within_groups(rewards.tolist(), world.draws("test")), (4, -1))
    assert not np.array_equal(found.flatten(), rewards)
    assert np.array_equal(np.sort(found, axis=1).flatten(), rewards)


def test_the_first_arms_are_shown_before_there_is_a_curve(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "r.jsonl").write_text(json_text({"bench": "world", "seed": 1, "name": "repetition", "validation": 2.0}))
    assert main(["--from", str(tmp_path / "r.jsonl")]) == 0
    assert "| repetition | 1 | 2.000 | one seed |" in capsys.readouterr().out


def _study(theta: float) -> list[dict[str, Any]]:
    """Of three worlds, whose losses fall with the copies of the text."""
    arms = {"theta": theta, "repetition": 2.0, "tuned, influence": 1.25, "tuned, no influence": 1.6}
    arms |= {"tuned, influence shuffled": 1.5, "best of four by influence": 1.4, "prompted": 1.75}
    arms |= {f"unique-{copies}": 2.0 - np.log2(copies) / 2 for copies in COPIES}
    records: list[dict[str, Any]] = []
    for seed in (1, 2, 3):
        for name, loss in arms.items():
            shares = {"probabilities": [1 / len(ACTIONS)] * len(ACTIONS), "tokens": 14_400} if "tuned" in name else {}
            records.append({"bench": "world", "seed": seed, "name": name, "validation": loss + seed / 100, **shares})
        for number, (form, care) in enumerate(ACTIONS):
            of = {"validation": 2.0 - number / 20, "influence": number / 1e3, "error": 0.1}
            records.append({"bench": "world_action", "seed": seed, "name": f"{form}, {care}", **of})
    return records


def test_the_page_is_made_from_records_alone(tmp_path: Path) -> None:
    (tmp_path / "r.jsonl").write_text("".join(json_text(one) + "\n" for one in _study(3.0)))
    docs = tmp_path / "docs"
    docs.mkdir()
    names = (
        "world-arms",
        "world-pairs",
        "world-curve",
        "world-cost",
        "world-actions",
        "world-horizons",
        "world-scores",
        "world-spread",
        "world-grid",
    )
    (docs / "evidence.md").write_text("".join(f"<!-- {name} -->\n<!-- end of {name} -->\n" for name in names))
    assert main(["--from", str(tmp_path / "r.jsonl"), "--docs", str(docs)]) == 0
    page = (docs / "evidence.md").read_text()
    curve = unique_curve(_study(3.0))
    assert curve is not None
    worth = (curve.tokens[1] * curve.tokens[2]) ** 0.5 / curve.tokens[
        0
    ]  # half of the way from the loss of 2 to that of 4
    assert "| tuned, influence | 3 | 1.270 |" in page and f"-0.750 (-0.750 to -0.750) | {worth:.2f} (" in page
    assert "| tuned, no influence | 0.350 | 0.350 to 0.350 |" in page
    # 30 steps of 6 documents, 8 texts of 20 tokens each, and five batches for the direction, of 600 trained on.
    more = 1 + (1440 * 20 / 2048 + 5) / 600
    assert f"| {more:.2f} |" in next(line for line in page.splitlines() if line.startswith("| tuned, influence | 720"))
    assert "Rank correlation of influence with what is gained: 1.00." in page and "| 6 % |" in page
    assert (docs / "images" / "world.png").stat().st_size > 10_000


def test_variances_within_groups_are_read_back_whatever_a_part_does_to_a_whole_group() -> None:
    rng = np.random.default_rng(0)
    groups, completions, parts = 4000, 8, 4
    shared = 5.0 * rng.standard_normal((groups, 1, parts)) + 3.0 * rng.standard_normal((groups, 1, 1))
    own = 0.5 * rng.standard_normal((groups, completions, 1))
    found = components(shared + own + 0.2 * rng.standard_normal((groups, completions, parts)))
    assert (found["between"], found["noise"]) == (pytest.approx(0.25, rel=0.03), pytest.approx(0.04, rel=0.03))


def _ranked(seed: int) -> list[dict[str, Any]]:
    """Of one world: actions in order of their worth after a step, and in the opposite order after many."""
    records: list[dict[str, Any]] = [
        {"bench": "world_truth", "seed": seed, "name": name, "horizon": 300, "losses": {
            str(step): {"validation": 3.0 if name == BASE else 3.0 - (place if step < 100 else -place) / 100}
            for step in HORIZONS}}
        for place, name in enumerate((BASE, *NAMES))
    ]  # fmt: skip
    return records + [
        {"bench": "world_scores", "seed": seed, "name": name, "scores": {"next step": place * seed, "other": -place}}
        for place, name in enumerate(NAMES)
    ]


def test_scores_are_held_to_what_actions_are_worth_at_each_horizon() -> None:
    records = [one for seed in (1, 2) for one in _ranked(seed)]
    assert f"| {NAMES[0]} | +0.010 | +0.010 | -0.010 | -0.010 |" in horizons(records)
    found = scores(records)
    assert "| next step | 1.00 (1.00 to 1.00) | 1.00 (1.00 to 1.00) | -1.00 (-1.00 to -1.00) |" in found
    assert "| other | -1.00 " in found and "| *its worth after 1 step* |  | 1.00 " in found


def test_worth_after_all_steps_is_read_off_the_study_s_own_trainings_too() -> None:
    study = [{"bench": "world", "seed": 1, "name": BASE, "validation": 2.0, "reference": 2.0}]
    study += [
        {"bench": "world_action", "seed": 1, "name": name, "validation": 1.0 - place / 50, "reference": 1.0}
        for place, name in enumerate(NAMES)
    ]
    told = [one for one in _ranked(1) if one["bench"] == "world_scores"]
    assert "| next step |  |  |  | 1.00 |" in scores(study + told) and scores(told) == "" == horizons(study)


@pytest.mark.slow
def test_scores_and_short_truths_of_a_world_are_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TO_THETA", "FROM_THETA"):
        monkeypatch.setattr(trainings, name, 6)
    monkeypatch.setattr(ranking, "sample_of", lambda texts: texts[:6])
    names = ["questions, careful", "noise, careful"]
    with launched(ParallelConfig()) as topology:
        of = ranking.Ranking(trainings.Trainings(World(5), tmp_path / "w", topology), names)
        found = list(of.records([], [2]))
        again = list(of.records(found, [2]))
    truths, told = ([one for one in found if one["bench"] == bench] for bench in ("world_truth", "world_scores"))
    assert [one["name"] for one in truths] == [BASE, *names] and again == []
    assert all({"1", "2"} <= set(one["losses"]) for one in truths)
    questions, noise = (one["scores"] for one in told)
    assert questions.keys() == noise.keys() and {"next step", "not clipped", "walk of 10 steps"} < questions.keys()
    assert questions["next step"] != questions["towards the validation"] != questions["walk of 10 steps"]
    assert noise["at values alone"] == 0.0 != noise["next step"]
    assert not (tmp_path / "w").exists()
