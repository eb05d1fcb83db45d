"""A question of the user's own in a recipe: a reward where it has a weight, else asked of generated texts."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from synpro_engine.config import UserError
from synpro_engine.cycle import load_recipe
from synpro_engine.cycle.recipe import Recipe
from synpro_engine.cycle.settings import SettingsOf
from synpro_engine.reward import build_composer
from synpro_engine.reward.judges import open_judges
from synpro_engine.synth import REPHRASE, Candidate, Entry, FilterConfig, Parsed
from synpro_engine.synth.builtin import FAQ
from synpro_engine.synth.filters import Filters, Made

ASKED = "{type: truth, ask: 'Would a beginner understand the text?', source: hidden}"
DROP = [f"tune.{operation}.bad_reward=drop_group" for operation in ("rephrase", "reformat")]


def recipe_with(*overrides: str, endpoint: str = "http://127.0.0.1:9/v1") -> Recipe:
    judge = f"reward.judges.clear={{endpoint: '{endpoint}', model: judge-1, api: systemone, question: {ASKED}}}"
    return load_recipe("smoke", [judge, *DROP, *overrides])


def test_a_question_without_a_weight_is_asked_of_generated_texts_and_by_no_tuning() -> None:
    recipe = recipe_with("filter.least={clear: 0.4}")
    of = SettingsOf(recipe)
    assert "clear" in of.generate("rephrase", 1).own_reward.remote
    assert "clear" not in of.tune("rephrase", 1).own_reward.remote
    assert of.tune("rephrase", 1).recorded() == SettingsOf(load_recipe("smoke", DROP)).tune("rephrase", 1).recorded()
    assert of.generate("rephrase", 1).recorded() != SettingsOf(load_recipe("smoke", DROP)).generate("rephrase", 1)
    assert of.shards.recorded()["filter"]["least"] == {"clear": 0.4}
    without = recipe_with("generate.rewards=[influence]")
    assert "clear" not in SettingsOf(without).generate("rephrase", 1).own_reward.remote


def test_a_question_with_a_weight_is_a_reward_of_the_operations_that_weigh_it() -> None:
    of = SettingsOf(recipe_with("reward.rephrase.clear=2.0"))
    assert "clear" in of.tune("rephrase", 1).own_reward.remote
    assert "clear" not in of.tune("reformat", 1).own_reward.remote
    assert "clear" not in of.generate("reformat", 1).own_reward.remote
    assert "clear" not in of.tune("reformat", 1).recorded()["reward"]["judges"]


def test_what_weighs_nothing_stands_in_the_record_and_spoils_no_total(server: Any) -> None:
    reward = SettingsOf(recipe_with(endpoint=server.endpoint)).generate("rephrase", 1).own_reward
    reward = reward.weighing({"rephrase": {"length": 1.0}}, reward.also)
    [judge] = open_judges(reward.remote, {"clear": "systemone"})
    composer = build_composer(reward, influence_of=None, likelihood_of=None, judges=[judge])
    parsed = REPHRASE.parse(f"{REPHRASE.heading}\nA text of some words, which is no long one.")
    candidate = Candidate(operation="rephrase", source="A source of as many words and more.", raw="", parsed=parsed)
    server.answer = lambda handler, body: handler.decide(body, lambda asked, names: [0.7, 0.3])
    assert composer.rows([candidate]) == [{"length": 1.0, "clear": pytest.approx(0.3), "total": 1.0}]
    assert composer.judges["clear"].startswith("judge-1 by systemone, question ")
    server.answer = lambda handler, body: handler.decide(body, lambda asked, names: None)
    other = Candidate(operation="rephrase", source=candidate.source, raw="", parsed=REPHRASE.parse(
        f"{REPHRASE.heading}\nAnother text of some words, not long."))  # fmt: skip
    assert composer.rows([other]) == [{"length": 1.0, "total": 1.0}] and composer.faults == 1


def test_a_question_of_entries_that_nothing_weighs_says_nothing_of_a_text_without_entries(server: Any) -> None:
    recipe = recipe_with("reward.judges.clear.question.each=entry", endpoint=server.endpoint)
    reward = SettingsOf(recipe).generate("rephrase", 1).own_reward
    [judge] = open_judges(reward.remote, {"clear": "systemone"})
    server.answer = lambda handler, body: handler.decide(body, lambda asked, names: [0.7, 0.3])
    parsed = Parsed(ok=True, text="A text.")
    told = replace(parsed, entries=(Entry(topic="a", content="b"),))
    of_none, of_one = (Candidate(operation="rephrase", source="A", raw="", parsed=each) for each in (parsed, told))
    weighing = build_composer(
        reward.weighing({"rephrase": {"clear": 1.0}}), influence_of=None, likelihood_of=None, judges=[judge]
    )
    assert [row["clear"] for row in weighing.rows([of_none, of_one])] == [0.0, pytest.approx(0.3)]
    unweighed = build_composer(
        reward.weighing({"rephrase": {"length": 1.0}}, reward.also),
        influence_of=None,
        likelihood_of=None,
        judges=[judge],
    )
    assert [row.get("clear") for row in unweighed.rows([of_none, of_one])] == [None, pytest.approx(0.3)]


def test_texts_under_the_least_value_are_removed_and_those_without_a_value_stay() -> None:
    filters, values = Filters(FilterConfig(least={"clear": 0.4})), {"a": 0.39, "b": 0.4, "c": None}
    texts = [
        Made(id=name, text=f"Text {name}.", source="", rewards={} if value is None else {"clear": value})
        for name, value in values.items()
    ]
    assert [made.id for made in filters.pass_through("rephrase", texts)] == ["b", "c"]
    found = filters.report.by_operation["rephrase"]
    assert found.removed == {"least clear": 1} and found.samples["least clear"][0].why == "0.39, below 0.4"


@pytest.mark.parametrize("name", ["quality", "faithfulness", "structure", "similarity", "mine"])
@pytest.mark.parametrize("where", ["endpoint: 'http://127.0.0.1:9/v1', ", ""])
def test_a_question_with_levels_is_read_for_every_judge_wherever_it_is(name: str, where: str) -> None:
    levels = "levels: [{name: bad}, {name: good}]"
    judge = f"reward.judges.{name}={{{where}model: m, question: {{type: score, ask: 'How good?', {levels}}}}}"
    recipe = load_recipe("smoke", [judge, *DROP])
    assert recipe.reward.judges.question_of(name).names == ("bad", "good")


def test_the_most_that_a_reward_can_be_is_that_of_its_question() -> None:
    levels = "levels: [{name: a}, {name: b}, {name: c}], lowest: 1"
    scored = f"reward.judges.scored={{model: m, question: {{type: score, ask: '?', source: {{}}, {levels}}}}}"
    greatest = lambda source: recipe_with(scored.replace("{}", source)).reward.greatest("scored")  # noqa: E731
    assert (greatest("hidden"), greatest("compared")) == (3.0, 2.0)
    reward = recipe_with().reward
    assert reward.greatest("clear") == reward.greatest("format") == 1.0
    assert reward.greatest("influence") is reward.greatest("quality") is None


def test_null_takes_away_what_a_base_asks_weighs_and_filters_by() -> None:
    own = ["reward.rephrase.clear=2.0", "reward.reformat.clear=1.0", "filter.least={clear: 0.4}"]
    gone = ["reward.judges.clear=null", "reward.rephrase.clear=null", "reward.reformat.clear=null"]
    gone += ["filter.least.clear=null", "reward.functions.own=null"]
    assert "clear" in recipe_with(*own).reward.names
    assert recipe_with(*own, *gone).recorded() == load_recipe("smoke", DROP).recorded()
    with pytest.raises(UserError, match=r"rephrase: no reward `qualty` to take away \(did you mean `quality`"):
        load_recipe("smoke", ["reward.rephrase.qualty=null"])
    quality = f"reward.judges.quality={{model: m, question: {ASKED}}}"
    with pytest.raises(UserError, match=r"qualty: a judge of your own needs a `question` \(did you mean `quality`"):
        recipe_with(quality, "reward.judges.qualty=null")


@pytest.mark.parametrize("name", ["clarity", "factuality", "text_quality", "structured"])
def test_null_takes_away_questions_that_are_called_somewhat_like_a_built_in_one(name: str) -> None:
    asked = f"reward.judges.{name}={{model: m, question: {ASKED}}}"
    assert name in load_recipe("smoke", [asked, *DROP]).reward.names
    assert load_recipe("smoke", [asked, f"reward.judges.{name}=null"]).reward == load_recipe("smoke").reward
    with pytest.raises(UserError, match=f"{name}: a judge of your own needs a `question`"):
        load_recipe("smoke", [f"reward.judges.{name}={{model: m}}"])


def test_null_takes_a_weight_from_the_operations_own_where_a_recipe_names_none() -> None:
    own = {name: weight for name, weight in REPHRASE.rewards.items() if name != "influence"}
    recipe = load_recipe("quickstart", ["reward.rephrase.influence=null"])
    assert recipe.reward.weights("rephrase") == own and own.keys() < REPHRASE.rewards.keys()
    assert recipe.reward.weights("reformat") == load_recipe("quickstart").reward.weights("reformat")
    given = load_recipe(
        "quickstart", ["reward.rephrase={influence: 2.0, format: 1.0}", "reward.rephrase.influence=null"]
    )
    assert given.reward.weights("rephrase") == {"format": 1.0}, (
        "what is left out where weights are named weighs nothing"
    )
    assert load_recipe("quickstart", ["reward.faq.influence=null"]).reward.weights("faq") == {
        name: weight for name, weight in FAQ.rewards.items() if name != "influence"
    }


def test_null_takes_a_weight_from_a_base_that_names_none(tmp_path: Path) -> None:
    (tmp_path / "ours.yaml").write_text("base: quickstart\nreward: {rephrase: {influence: null}}\n")
    ours = load_recipe(str(tmp_path / "ours.yaml"))
    assert ours.reward == load_recipe("quickstart", ["reward.rephrase.influence=null"]).reward


def test_an_arms_null_takes_away_what_the_recipe_weighs_and_nothing_comes_in_its_place() -> None:
    arm = "arms.a={text: tuned, reward: {rephrase: {influence: null}}}"
    own = load_recipe("quickstart", [arm]).of_arm("a").reward.weights("rephrase")
    assert own == load_recipe("quickstart", ["reward.rephrase.influence=null"]).reward.weights("rephrase")
    with pytest.raises(UserError, match=r"arms.a.*rephrase: reward.rephrase gives no reward a weight to tune by"):
        load_recipe("quickstart", ["reward.rephrase={influence: 1.0}", arm])


def test_an_operation_is_not_tuned_by_nothing() -> None:
    for weights in ("{}", "{influence: 0}"):
        with pytest.raises(UserError, match=r"tune.rephrase: reward.rephrase gives no reward a weight to tune by"):
            load_recipe("quickstart", [f"reward.rephrase={weights}"])
        assert load_recipe("quickstart", [f"reward.rephrase={weights}", "tune.rephrase=null"])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["filter.least={cler: 0.4}"], r"filter.least: no reward `cler` \(did you mean `clear`"),
        (["filter.least={clear: 0.4}", "generate.rewards=[]"], "least.clear: generate.rewards leaves `clear` out"),
        (["filter.least={clear: 0.4}", "reward.rephrase.clear=1.0"], "least.clear: reward.reformat gives `clear`"),
        (["filter.least={clear: 1.5}"], r"filter.least.clear: 1.5 is above 1, the most it can be"),
        (["filter.least={similarity: 2}"], r"filter.least.similarity: 2 is above 1, the most"),
        (["reward.rephrase.cleer=1.0"], r"no reward `cleer` \(did you mean `clear`"),
        (["reward.rephrase.clear=1.0", "tune.rephrase.bad_reward=stop"], "must be drop_group, for reward.judges.clear"),
    ],
)  # fmt: skip
def test_a_name_that_is_no_question_is_refused_by_its_key(overrides: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        recipe_with(*overrides)
