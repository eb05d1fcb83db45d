"""The world of facts: what its texts say, who is asked about where, and what tuning makes of rewards."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.world.__main__ import main
from benchmarks.world.rephraser import ACTIONS, Rephraser, judged, within_groups
from benchmarks.world.study import COPIES
from benchmarks.world.world import EOS, FORMS, PEOPLE, VOCABULARY, Text, World, corpus
from synpro_engine.config import json_text


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


def test_the_page_is_made_from_records_alone(tmp_path: Path) -> None:
    arms = {"theta": 3.0, "repetition": 2.0, "tuned, influence": 1.25, "tuned, no influence": 1.6}
    arms |= {"tuned, influence shuffled": 1.5, "best of four by influence": 1.4, "prompted": 1.75}
    arms |= {f"unique-{copies}": 2.0 - np.log2(copies) / 2 for copies in COPIES}
    records: list[dict[str, Any]] = []
    for seed in (1, 2, 3):
        for name, loss in arms.items():
            shares = {"probabilities": [1 / len(ACTIONS)] * len(ACTIONS)} if name.startswith("tuned") else {}
            records.append({"bench": "world", "seed": seed, "name": name, "validation": loss + seed / 100, **shares})
        for number, (form, care) in enumerate(ACTIONS):
            of = {"validation": 2.0 - number / 20, "influence": number / 1e3, "error": 0.1}
            records.append({"bench": "world_action", "seed": seed, "name": f"{form}, {care}", **of})
    (tmp_path / "r.jsonl").write_text("".join(json_text(one) + "\n" for one in records))
    docs = tmp_path / "docs"
    docs.mkdir()
    names = ("world-arms", "world-pairs", "world-curve", "world-actions", "world-grid")
    (docs / "evidence.md").write_text("".join(f"<!-- {name} -->\n<!-- end of {name} -->\n" for name in names))
    assert main(["--from", str(tmp_path / "r.jsonl"), "--docs", str(docs)]) == 0
    page = (docs / "evidence.md").read_text()
    assert "| tuned, influence | 3 | 1.270 |" in page and "-0.750 (-0.750 to -0.750) | 2.83 (" in page
    assert "| tuned, no influence | 0.350 | 0.350 to 0.350 |" in page
    assert "Rank correlation of influence with what is gained: 1.00." in page and "| 6 % |" in page
    assert (docs / "images" / "world.png").stat().st_size > 10_000
