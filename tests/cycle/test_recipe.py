"""Recipes: those that ship read and fit the layouts they are meant for, and contradictions are refused."""

from pathlib import Path

import pytest

from synpro_engine.config import UserError
from synpro_engine.config.describe import describe
from synpro_engine.config.recipes import recipe_names
from synpro_engine.cycle import load_recipe
from synpro_engine.cycle.external import fingerprint
from synpro_engine.cycle.layouts import check_recipe
from synpro_engine.cycle.sections import ContinueConfig
from synpro_engine.cycle.settings import SettingsOf
from synpro_engine.cycle.steps.pretraining import _refuse_unread
from synpro_engine.cycle.steps.training import mixture
from synpro_engine.data import Document, TokenCorpus


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_reads_and_every_key_is_described(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe.name == name
    lines = list(describe(recipe))
    assert any(line.startswith("pretrain.optimizer.lr=") for line in lines)
    # A key of the prompted tuning is listed under its operation.
    grouped = [line for line in lines if line.startswith("tune.rephrase.group_size=")]
    assert not recipe.tune or "Completions of each prompt" in grouped[0]


@pytest.mark.parametrize(("name", "millions"), [("synpro-400m", 474.0), ("synpro-1.1b", 1484.9)])
def test_the_papers_models_have_the_papers_sizes(name: str, millions: float) -> None:
    recipe = load_recipe(name)
    assert round(recipe.model.parameter_count() / 1e6, 1) == millions
    steps = recipe.pretrain.max_steps + recipe.rounds * recipe.continued.steps
    tokens = steps * recipe.pretrain.global_batch * recipe.model.seq_len
    assert round(tokens / 1e9, 1) == {"synpro-400m": 22.9, "synpro-1.1b": 45.8}[name]


@pytest.mark.parametrize("name", ["synpro-400m", "synpro-1.1b"])
def test_a_walk_of_the_papers_probe_reads_no_task_twice(name: str) -> None:
    recipe = load_recipe(name)
    read = recipe.probe.steps * recipe.probe.global_batch * recipe.model.seq_len
    assert recipe.references["flan"].max_tokens == read


def test_a_recipe_is_put_together_from_its_base(tmp_path: Path) -> None:
    (tmp_path / "site").mkdir()
    ours, theirs = tmp_path / "ours.yaml", tmp_path / "site" / "paths.yaml"
    theirs.write_text("base: synpro-400m\nname: site\ncorpus: {source: /data/text}\nreferences: {flan: {weight: 2.0}}")
    ours.write_text("base: site/paths.yaml\nname: ours\npretrain: {max_steps: 9, plateau: null}\n")
    recipe, paper = load_recipe(str(ours), ["seed=5"]), load_recipe("synpro-400m")
    assert (recipe.name, recipe.seed, recipe.corpus.source) == ("ours", 5, "/data/text")
    assert recipe.pretrain.max_steps == 9 and recipe.pretrain.plateau is None
    assert recipe.references["flan"].weight == 2.0 and recipe.references["flan"].prompt_field == "inputs"
    assert (recipe.model, recipe.tune, recipe.corpus.split) == (paper.model, paper.tune, paper.corpus.split)


def test_what_a_base_has_by_name_is_left_out_by_null(tmp_path: Path) -> None:
    ours = tmp_path / "ours.yaml"
    ours.write_text("base: synpro-400m\nname: ours\nreferences: {flan: null, mine: {source: tasks.jsonl}}\n"
                    "tune: {reformat: null}\ngenerate: {operations: [rephrase]}\nheld_out: {none: null}\n")  # fmt: skip
    recipe = load_recipe(str(ours))
    assert (list(recipe.references), list(recipe.tune), recipe.held_out) == (["mine"], ["rephrase"], {})
    with pytest.raises(UserError, match="`references`"):
        load_recipe("synpro-400m", ["references.flan=null"])
    with pytest.raises(UserError, match="`reward`: reformat: expected rewards with their weights"):
        load_recipe("synpro-400m", ["reward.reformat=null"])


@pytest.mark.parametrize(
    ("base", "message"),
    [
        ("synpro-400", r"a.yaml: `base`: no recipe `synpro-400` \(did you mean `synpro-400m`\?\)"),
        ("gone.yaml", r"gone.yaml: no such file"),
        ("a.yaml", "a.yaml: `base`: leads in a circle"),
        ("b.yaml", "a.yaml: `base`: leads in a circle"),
        ("[smoke]", "a.yaml: `base`: expected a recipe's name or file"),
    ],
)
def test_a_base_that_cannot_be_read_is_told_in_one_line(tmp_path: Path, base: str, message: str) -> None:
    (tmp_path / "a.yaml").write_text(f"base: {base}\n")
    (tmp_path / "b.yaml").write_text("base: a.yaml\n")
    with pytest.raises(UserError, match=message):
        load_recipe(str(tmp_path / "a.yaml"))


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_can_be_shared_out_over_two_ranks(name: str) -> None:
    check_recipe(load_recipe(name), 2)
    if load_recipe(name).tune:
        with pytest.raises(UserError, match=r"`tune.rephrase.prompts_per_step`: 3 cannot be divided by 2"):
            check_recipe(load_recipe(name, ["tune.rephrase.prompts_per_step=3"]), 2)


class _Letters:
    vocab_size, eos_id, pad_id, bos_id, fingerprint = 128, 0, 0, None, "letters"

    def encode(self, text: str) -> list[int]:
        return [ord(letter) for letter in text]


def _corpus(tokens: int) -> TokenCorpus:
    return TokenCorpus.from_documents([Document("a", "x" * (tokens - 1))], _Letters())


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["influence.estimator=two_forward"], "wants probe.kind walk: a gradient is no displacement"),
        (["influence.at=midpoint"], "wants probe.kind walk"),
        (["influence.packed=true"], "influence.packed: wants clip 0 here"),
        (["probe.kind=walk", "influence.clip=1"], "influence.clip: is for dot, not for two_forward"),
        (["pretrain.optimizer.name=mouon"], "pretrain.optimizer.name"),
        (["probe.control=true"], "control: is for kind walk"),
    ],
)
def test_an_estimator_that_does_not_suit_the_probe_is_refused_before_anything_runs(
    overrides: list[str], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        load_recipe("smoke", overrides)


@pytest.mark.parametrize("probe", [[], ["probe.kind=walk"], ["probe.kind=walk", "probe.keep_momentum=false"]])
def test_muon_goes_with_in_run_scores_and_with_every_probe(probe: list[str]) -> None:
    recipe = load_recipe("smoke", ["pretrain.optimizer.name=muon", *probe])
    assert recipe.pretrain.optimizer.name == "muon" and recipe.pretrain.in_run is not None


def test_a_schedule_that_ends_says_when_for_arms_go_on_from_the_step_of_theta() -> None:
    with pytest.raises(UserError, match=r"pretrain\.schedule.*a cosine schedule needs total_steps"):
        load_recipe("smoke", ["pretrain.schedule={kind: cosine, warmup_steps: 2}"])
    own = "arms.own={{text: organic, pretrain: {{schedule: {{kind: cosine{}}}}}}}"
    with pytest.raises(UserError, match=r"arms\.own: `pretrain\.schedule`: a cosine schedule needs total_steps"):
        load_recipe("smoke", [own.format("")])
    assert load_recipe("smoke", [own.format(", total_steps: 9")]).of_arm("own").pretrain.schedule.total_steps == 9


def test_arms_begin_with_weights_that_pretraining_keeps() -> None:
    with pytest.raises(UserError, match=r"continued\.train_from: pretrain\.ema is not given"):
        load_recipe("smoke", ["continued.train_from=ema"])
    with pytest.raises(UserError, match=r"pretrain`: evaluate_with: average is not kept"):
        load_recipe("smoke", ["pretrain.evaluate_with=average"])
    recipe = load_recipe("smoke", ["continued.train_from=ema", "pretrain.ema.decay=0.9", "pretrain.evaluate_with=ema"])
    arm = SettingsOf(recipe).arm(5, synthetic=False)
    assert (arm.train_from, arm.pretrain.given, arm.continued) == ("ema", "ema", None)


@pytest.mark.parametrize(
    ("config", "shares"),
    [
        (ContinueConfig(steps=1), [0.6, 0.1, 0.3]),
        (ContinueConfig(steps=1, synthetic_epochs=2.0), [6 / 14, 2 / 14, 6 / 14]),
        (ContinueConfig(steps=1, synthetic_share=0.8), [0.2, 0.2, 0.6]),
        (ContinueConfig(steps=1, recency=0.5), [600 / 950, 50 / 950, 300 / 950]),
        (ContinueConfig(steps=1, synthetic_share=0.7, recency=0.5), [0.3, 0.1, 0.6]),
        (ContinueConfig(steps=1, pools="replace"), [600 / 900, 0.0, 300 / 900]),
        (ContinueConfig(steps=1, synthetic_share=0.8, pools="replace"), [0.2, 0.0, 0.8]),
    ],
    ids=["concatenated", "epochs", "share", "recency", "share and recency", "replaced", "share of what is new"],
)
def test_the_mixture_is_by_tokens_epochs_or_share(config: ContinueConfig, shares: list[float]) -> None:
    corpora = {"organic": _corpus(600), "round-1": _corpus(100), "round-2": _corpus(300)}
    weights = mixture(corpora, config)
    assert [weights[name] / sum(weights.values()) for name in corpora] == pytest.approx(shares)


def test_an_old_round_that_counts_for_less_than_a_window_is_left_out_and_the_newest_never() -> None:
    corpora = {"organic": _corpus(600), "round-1": _corpus(100), "round-2": _corpus(300), "round-3": _corpus(300)}
    for given in ({}, {"synthetic_share": 0.5}):
        config = ContinueConfig(steps=1, recency=0.1, **given)
        weights = mixture(corpora, config, windows=60)
        assert weights["round-1"] == 0 and weights["round-2"] / weights["round-3"] == pytest.approx(0.1)
        assert weights["organic"] == (0.5 if given else 600)
        _refuse_unread(weights, windows=60)
    weights = mixture(corpora, ContinueConfig(steps=1, recency=0.1), windows=2)
    assert [name for name, weight in weights.items() if not weight] == ["round-1", "round-2"]
    with pytest.raises(UserError, match="synthetic text of round-3"):
        _refuse_unread(weights, windows=2)


def test_an_arm_that_would_read_no_synthetic_window_is_refused() -> None:
    weights = {"organic": 99.0, "round-1": 1.0}
    _refuse_unread(weights, windows=100)
    with pytest.raises(UserError, match=r"`continued.steps`: of the 99 windows .* a share of 1.00% leaves none"):
        _refuse_unread(weights, windows=99)


def test_a_changed_input_changes_its_fingerprint_and_a_copy_does_not(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / "docs.jsonl").write_text("one")
    assert fingerprint(str(tmp_path / "a")) == fingerprint(str(tmp_path / "b"))
    (tmp_path / "b" / "docs.jsonl").write_text("two")
    assert fingerprint(str(tmp_path / "a")) != fingerprint(str(tmp_path / "b"))
    assert fingerprint(None) == "" and fingerprint("embedded:sotu") != fingerprint("random")
