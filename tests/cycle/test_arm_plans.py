"""Arms as a recipe declares them: their stages, what these are made from, and what is refused; nothing is run."""

import json
from itertools import pairwise
from pathlib import Path

import pytest

from synpro_engine.config import UserError, json_text
from synpro_engine.cycle import Cycle, Recipe, load_recipe
from synpro_engine.cycle.forecast import forecast
from synpro_engine.cycle.plan import Plan, looked_at, planned
from synpro_engine.cycle.stages import Stage, needed
from synpro_engine.cycle.steps.evaluation import Results
from synpro_engine.cycle.summaries.finished_run import FinishedRun
from synpro_engine.cycle.summaries.report_data import _diversity
from synpro_engine.dist import ParallelConfig, launched
from synpro_engine.evaluate import measure_diversity
from tests.cli.refusals import refused


def _plan(*overrides: str, recipe: str = "smoke") -> dict[str, Stage]:
    with launched(ParallelConfig()) as topology:
        plan = Plan(load_recipe(recipe, overrides), Path("x"), topology)
        return {stage.name: stage for stage in plan.stages()}


def test_arms_by_the_names_of_those_without_any_are_the_same_stages() -> None:
    named = ["arms={synthetic: {text: tuned}, repetition: {text: organic}}"]
    none, both = _plan(), _plan(*named)
    assert set(both) - set(none) == {"arms/synthetic/evaluate", "arms/repetition/evaluate"}
    for name in set(none) - {"evaluate"}:
        assert json_text(none[name].config) == json_text(both[name].config)
        assert none[name].parents == both[name].parents and none[name].seed == both[name].seed
    assert both["evaluate"].parents == ("tokenize", "pretrain")


def test_an_arm_begins_each_round_with_what_it_is_by_then_itself() -> None:
    arms = "arms={one: {text: tuned}, two: {text: tuned, influence: shuffled}}"
    stages = _plan(arms, "rounds=2", "seeds=[7, 9]")
    assert stages["arms/two/round-2/probe"].parents == ("tokenize", "arms/two/round-1/continue")
    second = stages["arms/two/round-2/continue-seed-9"]
    assert second.parents == (
        "tokenize", "arms/two/round-1/continue-seed-9", "arms/two/round-1/shards", "arms/two/round-2/shards",
    )  # fmt: skip
    tune = stages["arms/two/round-2/tune-rephrase"]
    assert "arms/two/round-1/tune-rephrase" in tune.parents and tune.config["tune"]["shuffled"] == ["influence"]
    afresh = _plan(arms, "rounds=2", "cycle.tune_from=base")["arms/two/round-2/tune-rephrase"]
    assert afresh.parents == ("tokenize", "arms/two/round-1/continue", "arms/two/round-2/probe", "import")


def test_held_out_text_that_is_not_asked_is_none_of_what_training_is_made_from() -> None:
    def made_from(stages: dict[str, Stage], name: str) -> set[str]:
        return {name}.union(*(made_from(stages, parent) for parent in stages[name].parents))

    plain = _plan(recipe="arms-smoke")
    sums = "held_out.sums={source: 'embedded:sciq/validation', max_tokens: 500}"
    trained = ["pretrain", *(name for name in plain if "/continue" in name)]
    for settings in ([sums], [sums, "held_out.sums.max_tokens=900"]):
        more = _plan(*settings, recipe="arms-smoke")
        assert more["held-out"].config != plain["held-out"].config
        for name in trained:
            assert "held-out" not in made_from(more, name) >= {"asked"}
            assert all(more[one].config == plain[one].config for one in made_from(plain, name) | made_from(more, name))
    for settings in (
        "held_out.questions.max_tokens=900",
        "held_out.more={source: 'embedded:sciq/validation', choices_field: c}",
    ):
        assert _plan(settings, recipe="arms-smoke")["asked"].config != plain["asked"].config


def test_questions_that_an_arm_alone_asks_are_there_for_it() -> None:
    arms = "arms={one: {text: organic}, two: {text: organic, pretrain: {tasks_every: 2}}}"
    stages = _plan(arms, "pretrain.tasks_every=0", recipe="arms-smoke")
    assert [name for name, stage in stages.items() if "asked" in stage.parents] == [
        "arms/two/continue", "arms/two/continue-seed-8",
    ]  # fmt: skip
    assert "asked" not in _plan("pretrain.tasks_every=0", recipe="arms-smoke")


def test_only_brings_up_an_arm_and_what_it_is_made_from() -> None:
    stages = list(_plan(recipe="arms-smoke").values())
    names = [stage.name for stage in needed(stages, None, ["best-of-n"])]
    assert names == [
        "tokenize", "held-out", "asked", "import", "pretrain", "round-1/probe",
        "arms/prompted/round-1/generate-rephrase",
        *(f"arms/best-of-n/round-1/{name}" for name in ("shards", "continue", "continue-seed-8")),
        "arms/best-of-n/evaluate",
    ]  # fmt: skip
    assert [stage.name for stage in needed(stages, "generate", ["best-of-n"])] == [
        name for name in names[:8] if name != "held-out"
    ]
    with pytest.raises(UserError, match="no stage of oracle for `tune`"):
        needed(stages, "tune", ["oracle"])


def test_a_command_for_one_arm_brings_up_what_that_arm_is_made_from() -> None:
    stages = list(_plan(recipe="arms-smoke").values())
    assert [stage.name for stage in needed(stages, "pretrain", ["tuned"])] == ["tokenize", "asked", "pretrain"]
    assert [stage.name for stage in needed(stages, "probe", ["placebo"])][-1] == "round-1/probe"
    with pytest.raises(UserError, match="no stage of oracle for `tune`"):
        needed(stages, "tune", ["oracle"])


def test_an_arm_that_is_none_is_refused_by_its_name(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    told = refused(capsys, "run", "arms-smoke", "--dir", str(tmp_path / "run"), "--only", "placibo")
    assert "--only placibo: no such arm; there are repetition" in told and "did you mean `placebo`" in told
    assert not (tmp_path / "run").exists()


def test_the_forecast_has_every_stage_once() -> None:
    recipe = load_recipe("arms-smoke", ["rounds=2"])
    costs = [cost.stage for cost in forecast(recipe, 1).costs]
    assert costs == list(_plan("rounds=2", recipe="arms-smoke")) and len(costs) == len(set(costs))
    steps = {cost.stage: cost.tokens for cost in forecast(recipe, 1).costs}
    assert steps["arms/oracle/continue"] == 2 * 6 * 8 * 64 == 2 * steps["arms/tuned/round-1/continue"]


_SMOKE = "arms={{a: {{text: tuned}}, b: {}}}"


@pytest.mark.parametrize(
    ("arm", "told"),
    [
        ("{text: organic, pretrain: {max_steps: 5}}", "arms.b.pretrain.max_steps: is one for all arms"),
        ("{text: organic, pretrain: {seed: 5}}", "arms.b.pretrain.seed: is one for all arms"),
        ("{text: organic, pretrain: {optimizer: {name: muon}}}", "arms.b.pretrain.optimizer.name: an arm goes on with"),
        ("{text: organic, tune: {rephrase: {steps: 2}}}", "arms.b.tune: an arm on organic text generates nothing"),
        ("{text: organic, pretrain: {optimizer: {weight_decai: 5}}}", "arms.b: unknown key `pretrain.optimizer.weight"),
        ("{text: prompted, influence: none}", "arms.b.influence: none is for `text: tuned`"),
        ("{text: tuned, tune: {rephrase: {algorithm: dapo}}}", "arms.b.tune.rephrase.algorithm: give the settings"),
        ("{text: tuned, tune: {rephrase: null, reformat: null}}", "arms.b.text: is tuned, but `tune`"),
        (
            "{text: tuned, reward: {rephrase: {influence: 0.0}, reformat: {influence: 0.0}}, influence: shuffled}",
            "arms.b.influence: is shuffled, but `reward` gives `influence` no weight",
        ),
        (
            "{text: tuned, influence: shuffled, tune: {reformat: {baseline: batch, scale: batch, group_size: 1}}}",
            "arms.b: `tune.reformat`: shuffled: wants baseline group or leave_one_out",
        ),
        (
            "{text: tuned, influence: shuffled, tune: {reformat: {without: [influence]}}}",
            "arms.b: `tune.reformat`: shuffled: `influence` is in `without` too",
        ),
        (
            "{text: tuned, influence: none, tune: {rephrase: {shuffled: [influence]}}}",
            "arms.b: `tune.rephrase`: shuffled: `influence` is in `without` too",
        ),
        (
            "{text: tuned, tune: {rephrase: {judge_canary: {every: 1, least: {quality: 0.6}}, without: [quality]}}}",
            "tune.rephrase.judge_canary.least: no judge `quality`",
        ),
        ("{text: tuned, pretrain: {ema: {decay: 0.9}}, continued: {train_from: ema}}", "arms.b.continued.train_from: "),
        ("{text: tuned, filter: {influence_quantile: 0.2}, influence: none}", "give the arm `filter: {influence_qu"),
        ("{text: tuned, continued: {steps: 15}}", "arms.b: is the same as arms.a"),
        ("{text: tuned, filter: {best: {keep: 1}}}", "filter.best.keep: 1 of each slice, of which"),
        ("{text: made}", "arms.b.text"),
        ("{text: organic, unique_tokens: 500}", "arms.b.unique_tokens: is for `text: unique`; this arm reads organic"),
    ],
)  # fmt: skip
def test_an_arm_that_could_mislead_is_refused_in_a_line(arm: str, told: str) -> None:
    with pytest.raises(UserError) as caught:
        load_recipe("smoke", [_SMOKE.format(arm)])
    assert told in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("scores", ["other.jsonl", "scores.jsonl"])
def test_the_order_of_organic_text_that_pretraining_reads_in_is_one_for_all_arms(scores: str) -> None:
    mine = {"scores": scores, "order": "bucketed" if scores == "scores.jsonl" else "sorted", "buckets": 3}
    recipe = "mix.organic={scores: scores.jsonl, order: sorted, buckets: 3}"
    with pytest.raises(UserError, match=r"arms\.b\.mix\.organic: is read in pretraining") as caught:
        load_recipe("smoke", [recipe, _SMOKE.format(f"{{text: organic, mix: {{organic: {json.dumps(mine)}}}}}")])
    assert "\n" not in str(caught.value)
    load_recipe("smoke", [_SMOKE.format(f"{{text: organic, mix: {{organic: {json.dumps(mine)}}}}}")])


def test_influence_is_shuffled_or_left_out_where_it_is_weighed_and_nowhere_else() -> None:
    for how, key in (("shuffled", "shuffled"), ("none", "without")):
        arm = f"{{text: tuned, reward: {{rephrase: {{influence: 0.0}}}}, influence: {how}}}"
        tune = load_recipe("smoke", [_SMOKE.format(arm)]).of_arm("b").tune
        assert (getattr(tune["rephrase"], key), getattr(tune["reformat"], key)) == ((), ("influence",))


def test_repeats_that_go_by_no_score_suit_a_placebo() -> None:
    arm = "{text: tuned, influence: shuffled, mix: {synthetic: {repeats: 2.0}}}"
    assert load_recipe("smoke", [_SMOKE.format(arm)]).of_arm("b").mix.synthetic is not None
    with pytest.raises(UserError, match=r"give the arm `mix: \{synthetic: null\}`"):
        load_recipe("smoke", [_SMOKE.format(arm.replace("2.0", "[1.0, 2.0]"))])


@pytest.mark.parametrize("own", ["probe: {sampled_steps: 2}", "pretrain: {optimizer: {weight_decay: 0.5}}"])
def test_a_first_probe_of_an_arms_own_has_a_name_of_its_own(own: str, tmp_path: Path) -> None:
    arms = f"arms={{other: {{text: prompted}}, synthetic: {{text: tuned, {own}}}}}"
    stages = list(_plan(arms).values())
    names = [stage.name for stage in stages if stage.name.endswith("/probe")]
    assert names == ["round-1/probe", "arms/synthetic/round-1/probe"]
    parents = {stage.name: stage.parents for stage in stages}
    assert names[1] in parents["round-1/tune-rephrase"] and names[0] not in parents["round-1/tune-rephrase"]
    with launched(ParallelConfig()) as topology:
        alone = Cycle(load_recipe("smoke", [f"arms={{synthetic: {{text: tuned, {own}}}}}"]), tmp_path, topology)
        assert next(alone._pairs()) == ("pretrain", names[1])


def test_arms_that_differ_in_a_path_alone_are_apart_whoever_looks(tmp_path: Path) -> None:
    arms = []
    for name in "ab":
        path = tmp_path / f"{name}.jsonl"
        path.write_text("{}\n")
        arms.append(f"{name}: {{text: organic, mix: {{organic: {{scores: {path}, order: sorted}}}}}}")
    given = f"arms={{{', '.join(arms)}}}"
    recipe = load_recipe("smoke", [given])
    wanted = {f"arms/{name}/{stage}" for name in "ab" for stage in ("continue", "evaluate")}
    assert wanted <= {stage.name for stage in planned(recipe, 1).stages}
    assert wanted <= {stage.name for stage in looked_at(recipe, tmp_path).stages}
    assert wanted <= set(_plan(given))  # though both hold the same
    with pytest.raises(UserError, match=r"arms\.b: is the same as arms\.a"):
        load_recipe("smoke", [given.replace("b.jsonl", "a.jsonl")])


def test_an_arm_that_would_be_another_one_is_refused_by_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its settings are read by no stage that it has, so it would vanish from the report."""
    arms = "arms={a: {text: organic}, b: {text: organic, mix: {megadocs: {generations: 2}}}}"
    told = refused(capsys, "run", "smoke", arms, "--dir", str(tmp_path / "run"))
    assert "arms.b: nothing that it does goes by its settings, so that it would be arms.a once more" in told
    assert not (tmp_path / "run").exists()
    assert "arms.a once more" in refused(capsys, "plan", "smoke", arms)


def test_rounds_are_numbered_by_what_was_trained_though_one_has_no_texts(tmp_path: Path) -> None:
    recipe = load_recipe("smoke", ["rounds=3"])
    for number in (1, 2, 3):
        (tmp_path / f"round-{number}" / "continue").mkdir(parents=True)
    run = _Unread(tmp_path, recipe, [])
    run.done = {f"round-{number}/continue" for number in (1, 2, 3)}
    assert list(_diversity(run)) == ["organic", "rephrase, round 1", "rephrase, round 3"]


class _Unread(FinishedRun):
    """Of three rounds, whose second one accepted nothing."""

    def results(self) -> dict[str | None, Results]:
        gauge = measure_diversity(["a text of some words", "another text"])
        return {None: Results(diversity=dict.fromkeys(("organic", "rephrase, round 1", "rephrase"), gauge))}


def test_as_much_unique_text_is_kept_as_the_largest_oracle_reads_or_has() -> None:
    few, both = "{text: unique, unique_tokens: 900}", "a: {text: unique, unique_tokens: 700}, b: {text: unique}"
    assert load_recipe("smoke", [f"arms={{a: {few}}}"]).most_unique_tokens == 900
    assert load_recipe("smoke", [f"arms={{{both}}}"]).most_unique_tokens == 15 * 8 * 64


def test_an_oracle_needs_a_cap_and_seeds_begin_with_the_recipes() -> None:
    with pytest.raises(UserError, match=r"without `corpus.max_train_tokens` all of the text is the training split's"):
        load_recipe("smoke", ["arms={a: {text: unique}}", "corpus.max_train_tokens=null"])
    with pytest.raises(UserError, match=r"seeds: must begin with `seed` \(7\)"):
        load_recipe("smoke", ["seeds=[1, 7]"])
    with pytest.raises(UserError, match="one is named twice"):
        load_recipe("smoke", ["seeds=[7, 7]"])


def test_settings_that_came_later_leave_recorded_recipes_as_they_were() -> None:
    recipe: Recipe = load_recipe("smoke")
    assert not {"arms", "seeds", "cycle"} & recipe.recorded().keys()
    continued = _plan()["round-1/continue"].config["continued"]
    assert set(continued) == {"steps", "synthetic_share", "synthetic_epochs"}
    tune = _plan()["round-1/tune-rephrase"].config["tune"]
    assert not {"shuffled", "without"} & tune.keys()
    assert all(a.name != b.name for a, b in pairwise(_plan().values()))
