"""What a changed setting changes: the stages that depend on it, and no other."""

import shutil
from pathlib import Path

import pytest

from synpro_engine.config import UserError, load_config, read_yaml, to_yaml
from synpro_engine.cycle import Recipe, load_recipe
from synpro_engine.cycle.external import fingerprint
from synpro_engine.cycle.plan import Plan
from synpro_engine.cycle.run_layout import CONFIG
from synpro_engine.cycle.run_lock import check_claimed, claim, stale_of
from synpro_engine.cycle.stages import Stage
from synpro_engine.dist import ParallelConfig, Topology, launched
from tests.cycle.running import run_stages

_ALL = (
    "tokenize import pretrain round-1/probe round-1/tune-rephrase round-1/tune-reformat round-1/generate-rephrase"
    " round-1/generate-reformat round-1/shards round-1/continue repeat evaluate"
).split()
_TRAINED = [name for name in _ALL if name not in ("tokenize", "import")]
_RATED = [name for name in _ALL if "/" in name and name != "round-1/probe"]


def _plan(directory: Path, *overrides: str, name: str = "smoke") -> tuple[Recipe, list[Stage]]:
    recipe = load_recipe(name, overrides)
    with launched(ParallelConfig()) as topology:
        return recipe, list(Plan(recipe, directory, topology).stages())


def _own(*overrides: str) -> set[str]:
    """The stages whose own settings the overrides change."""
    before, after = ({stage.name: stage.config for stage in _plan(Path("x"), *o)[1]} for o in ((), overrides))
    assert list(before) == _ALL
    return {name for name in {*before, *after} if before.get(name) != after.get(name)}


@pytest.mark.parametrize(
    ("override", "stages"),
    [
        ("corpus.max_train_tokens=19000", {"tokenize"}),
        ("tokenizer.vocab_size=500", {"tokenize"}),
        ("generator.seq_len=512", {"import"}),
        ("pretrain.max_steps=61", {"pretrain"}),
        ("pretrain.plateau.window=5", {"pretrain"}),
        ("pretrain.in_run.every=10", {"pretrain"}),
        ("pretrain.optimizer.lr=1e-3", {"pretrain", "round-1/probe", "round-1/continue", "repeat"}),
        ("pretrain.global_batch=16", {"pretrain", "round-1/probe", "round-1/continue", "repeat"}),
        ("pretrain.mask_repetitions=true", {"pretrain", "round-1/probe", "round-1/continue", "repeat"}),
        ("pretrain.seed=8", {"pretrain", "round-1/continue", "repeat"}),
        ("probe.sampled_steps=2", {"round-1/probe"}),
        ("tune.rephrase.steps=4", {"round-1/tune-rephrase"}),
        ("tune.reformat.kl_beta=0.1", {"round-1/tune-reformat"}),
        ("generate.samples=2", {"round-1/generate-rephrase", "round-1/generate-reformat"}),
        (
            "generate.max_slices=6",
            {f"round-1/{kind}-{op}" for kind in ("tune", "generate") for op in ("rephrase", "reformat")},
        ),
        ("reward.quality_high=6.0", {name for name in _RATED if "tune" in name or "generate" in name}),
        ("influence.estimator=jvp", {name for name in _RATED if "tune" in name or "generate" in name} | {"evaluate"}),
        ("continued.synthetic_epochs=2.0", {"round-1/continue"}),
        ("continued.steps=16", {"round-1/continue", "repeat"}),
    ],
)
def test_a_setting_reaches_the_stages_that_read_it_and_no_other(override: str, stages: set[str]) -> None:
    assert _own(override) == stages


@pytest.mark.parametrize(
    "override",
    [
        "name=other",
        "pretrain.seed=7",  # the recipe's own
        "verify=always",
        "pretrain.micro_batch=2",
        "pretrain.checkpoint_every=7",
        "pretrain.keep_checkpoints=3",
        "pretrain.tensorboard=false",
        "tune.rephrase.micro_batch=2",
        "tune.rephrase.log_samples=0",
        "probe.micro_batch=2",
        "influence.micro_batch=2",
    ],
)
def test_how_work_is_done_changes_no_stage(override: str) -> None:
    assert _own(override) == set()


@pytest.mark.parametrize(
    ("override", "looks_back"), [("filter.near_duplicate=0.8", True), ("filter.min_chars=9", False)]
)
def test_a_round_is_made_from_the_texts_of_those_before_it_where_a_filter_looks_at_them(
    override: str, looks_back: bool
) -> None:
    shards = {s.name: s for s in _plan(Path("x"), "rounds=3", override)[1] if s.name.endswith("/shards")}
    first, third = shards["round-1/shards"], shards["round-3/shards"]
    before = {f"round-{n}/{name}" for n in (1, 2) for name in ("shards", "generate-rephrase", "generate-reformat")}
    assert before & set(third.parents) == (before if looks_back else set())
    assert not before & set(first.parents) - {"round-1/generate-rephrase", "round-1/generate-reformat"}
    given = third.work.keywords["earlier"]  # pyright: ignore[reportAttributeAccessIssue]
    assert {str(path) for path in given} == ({"x/round-1/shards", "x/round-2/shards"} if looks_back else set())


def test_what_is_read_is_told_apart_by_its_content_and_may_be_moved(tmp_path: Path) -> None:
    for name, text in (("a", "one"), ("b", "one"), ("c", "other")):
        (tmp_path / f"{name}.jsonl").write_text(f'{{"text": "{text}"}}\n')
    config = {
        name: {s.name: s.config for s in _plan(tmp_path, f"corpus.source={tmp_path / name}.jsonl")[1]} for name in "abc"
    }
    assert config["a"] == config["b"]
    assert {stage for stage in _ALL if config["a"][stage] != config["c"][stage]} == {"tokenize"}


def _claim(directory: Path, recipe: Recipe, stages: list[Stage], *, redo: bool) -> list[str]:
    """As a command does before its first stage; the names of what it removes."""
    stale = stale_of(directory, recipe, stages, redo=redo)
    claim(directory, recipe, stale)
    return [stage.name for stage in stale]


def _made(directory: Path, *overrides: str, until: str | None = None, text: str = "", name: str = "smoke") -> None:
    """Every stage of the plan, or those up to a command's, with a file in place of what its work would write."""
    recipe, stages = _plan(directory, *overrides, name=name)
    directory.mkdir(exist_ok=True)
    _claim(directory, recipe, stages, redo=False)
    with launched(ParallelConfig()) as topology:
        fake = [
            Stage(
                name=s.name, command=s.command, config=s.config, parents=s.parents, seed=s.seed,
                work=lambda into, topology, name=s.name: (into / "what").write_text(name + text) and None,
            )
            for s in stages
        ]  # fmt: skip
        run_stages(directory, fake, topology, until)


def _there(directory: Path) -> set[str]:
    return {name for name in _ALL if (directory / name).exists()}


@pytest.mark.parametrize(
    ("override", "gone"),
    [
        ("continued.synthetic_epochs=2.0", {"round-1/continue", "evaluate"}),
        ("tune.rephrase.steps=4", set(_RATED) - {"round-1/tune-reformat", "round-1/generate-reformat"} | {"evaluate"}),
        ("pretrain.optimizer.lr=1e-3", set(_TRAINED)),
        ("corpus.max_train_tokens=19000", set(_ALL)),
    ],
)
def test_a_changed_recipe_is_refused_and_with_redo_takes_away_what_depends_on_it(
    tmp_path: Path, override: str, gone: set[str]
) -> None:
    run = tmp_path / "run"
    _made(run)
    recipe, stages = _plan(run, override)
    before = (run / CONFIG).read_text()
    with pytest.raises(UserError, match=rf"`{override.split('=')[0]}` is .* there, .* here.*--redo") as caught:
        _claim(run, recipe, stages, redo=False)
    assert "\n" not in str(caught.value)
    assert _there(run) == set(_ALL) and (run / CONFIG).read_text() == before
    assert set(_claim(run, recipe, stages, redo=True)) == gone
    assert _there(run) == set(_ALL) - gone
    assert load_config(Recipe, read_yaml(run / CONFIG)) == recipe
    assert _claim(run, recipe, stages, redo=False) == []  # asked once


def test_stages_that_a_change_does_not_reach_are_kept_without_a_question(tmp_path: Path) -> None:
    run = tmp_path / "run"
    _made(run)
    shutil.rmtree(run / "evaluate")
    recipe, stages = _plan(run, "influence.micro_batch=3", "name=other")
    assert _claim(run, recipe, stages, redo=False) == []
    assert (run / CONFIG).read_text().endswith(to_yaml(recipe))


def test_half_done_work_that_could_be_resumed_is_not_thrown_away_without_a_word(tmp_path: Path) -> None:
    run = tmp_path / "run"
    recipe, stages = _plan(run)
    run.mkdir()
    _claim(run, recipe, stages, redo=False)

    def interrupted(into: Path, *, topology: Topology) -> None:
        (into / "checkpoints" / "step-1").mkdir(parents=True)
        (into / "checkpoints" / "step-1" / "manifest.json").write_text("{}")
        raise KeyboardInterrupt

    first = stages[0]
    broken = Stage(name=first.name, command=first.command, config=first.config, work=interrupted, seed=first.seed)
    with launched(ParallelConfig()) as topology, pytest.raises(KeyboardInterrupt):
        run_stages(run, [broken], topology)
    changed, other = _plan(run, "corpus.max_train_tokens=19000")
    with pytest.raises(UserError, match=r"`corpus.max_train_tokens`.*tokenize.*--redo"):
        _claim(run, changed, other, redo=False)
    assert _claim(run, recipe, stages, redo=False) == []
    assert (run / "tokenize.partial" / "checkpoints").exists()
    assert _claim(run, changed, other, redo=True) == ["tokenize"]
    assert not (run / "tokenize.partial").exists()


def test_a_corpus_may_be_put_away_once_it_is_tokenised(tmp_path: Path) -> None:
    source, run = tmp_path / "text.jsonl", tmp_path / "run"
    source.write_text('{"text": "one"}\n')
    _made(run, f"corpus.source={source}")
    source.unlink()
    recipe, stages = _plan(run, f"corpus.source={source}")
    assert _claim(run, recipe, stages, redo=False) == []
    mistyped, others = _plan(run, f"corpus.source={source}x")
    with pytest.raises(UserError, match=r"what `corpus.source` names holds something else now"):
        _claim(run, mistyped, others, redo=False)


def test_a_run_is_looked_at_under_another_path_only_where_that_names_what_was_read(tmp_path: Path) -> None:
    run, texts = tmp_path / "run", {"a": "one", "copy": "one", "b": "two"}
    for name, text in texts.items():
        (tmp_path / f"{name}.jsonl").write_text(f'{{"text": "{text}"}}\n')
    _made(run, f"corpus.source={tmp_path}/a.jsonl")
    check_claimed(run, *_plan(run, f"corpus.source={tmp_path}/copy.jsonl"))
    with pytest.raises(UserError, match=r"another config: `corpus.source` is .* there, .* here"):
        check_claimed(run, *_plan(run, f"corpus.source={tmp_path}/b.jsonl"))
    (tmp_path / "a.jsonl").write_text('{"text": "longer now"}\n')
    check_claimed(run, *_plan(run, f"corpus.source={tmp_path}/a.jsonl"))


def test_a_run_whose_arm_has_a_file_of_its_own_is_looked_at_after_the_file_has_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def arms(file: str) -> str:
        own = f"reward: {{functions: {{own: '{file}:own'}}, rephrase: {{own: 1.0}}}}"
        return f"arms={{plain: {{text: tuned}}, with: {{text: tuned, {own}}}}}"

    run = tmp_path / "run"
    monkeypatch.chdir(tmp_path)  # so that a message has the paths whole
    for file in ("a.py", "b.py"):
        (tmp_path / file).write_text("def own(text, source):\n    return 1.0\n")
    _made(run, arms("a.py"))
    (tmp_path / "a.py").write_text("def own(text, source):\n    return 2.0\n")
    check_claimed(run, *_plan(run, arms("a.py")))
    with pytest.raises(UserError, match=r"another config: `arms.with.reward.functions.own` is 'a.py:own' there"):
        check_claimed(run, *_plan(run, arms("b.py")))


def test_a_stage_that_is_missing_takes_nothing_with_it(tmp_path: Path) -> None:
    """As after a kill between taking an old artifact away and showing the new one."""
    run = tmp_path / "run"
    _made(run)
    shutil.rmtree(run / "pretrain")
    assert _claim(run, *_plan(run), redo=False) == []
    _made(run)
    assert _there(run) == set(_ALL)


def test_what_was_made_from_another_content_of_its_parent_is_stale(tmp_path: Path) -> None:
    run = tmp_path / "run"
    _made(run)
    shutil.rmtree(run / "pretrain")
    _made(run, until="pretrain", text="other")
    with pytest.raises(UserError, match=r"what it was made from has changed: round-1/probe and \d+ made from it"):
        _claim(run, *_plan(run), redo=False)


@pytest.mark.parametrize("text", ["one", "two"])
def test_another_content_of_token_files_changes_the_stage(tmp_path: Path, text: str) -> None:
    for name in ("tokens.bin", "tokens.idx"):
        (tmp_path / name).write_text("one")
    before = fingerprint([str(tmp_path / "tokens")])
    (tmp_path / "tokens.idx").write_text(text)
    assert (fingerprint([str(tmp_path / "tokens")]) == before) == (text == "one")


def test_another_content_under_the_same_path_is_named(tmp_path: Path) -> None:
    source, run = tmp_path / "text.jsonl", tmp_path / "run"
    source.write_text('{"text": "one"}\n')
    _made(run, f"corpus.source={source}")
    source.write_text('{"text": "two"}\n')
    recipe, stages = _plan(run, f"corpus.source={source}")
    with pytest.raises(UserError, match=r"what `corpus.source` names holds something else now.*--redo"):
        _claim(run, recipe, stages, redo=False)


def test_a_changed_file_of_a_judge_makes_the_stages_that_ask_it_others(tmp_path: Path) -> None:
    judge = tmp_path / "judge.json"

    def configs() -> dict[str, str]:
        recipe = load_recipe("smoke", [f"reward.faithfulness_judge={judge}"])
        with launched(ParallelConfig()) as topology:
            return {stage.name: str(stage.config) for stage in Plan(recipe, tmp_path / "run", topology).stages()}

    judge.write_text("one")
    before = configs()
    judge.write_text("two")
    changed = {name for name, config in configs().items() if config != before[name]}
    stages = ("tune-rephrase", "tune-reformat", "generate-rephrase", "generate-reformat")
    assert changed == {f"round-1/{stage}" for stage in stages}


def test_a_judge_that_is_put_away_leaves_what_arms_share_as_it_was(tmp_path: Path) -> None:
    judge, run = tmp_path / "judge.json", tmp_path / "run"
    judge.write_text("one")
    _made(run, f"reward.faithfulness_judge={judge}", name="arms-smoke")
    before = [stage.name for stage in _plan(run, f"reward.faithfulness_judge={judge}", name="arms-smoke")[1]]
    judge.unlink()
    recipe, stages = _plan(run, f"reward.faithfulness_judge={judge}", name="arms-smoke")
    assert [stage.name for stage in stages] == before
    assert _claim(run, recipe, stages, redo=False) == []
