"""What `synpro plan` says is what a run then does."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from synpro_engine.cli.main import main
from synpro_engine.config import UserError
from synpro_engine.config.recipes import recipe_names
from synpro_engine.cycle import load_recipe
from synpro_engine.cycle.choice import Machine, choices
from synpro_engine.cycle.forecast import NEEDED, Cost, Forecast, forecast
from synpro_engine.cycle.plan import Plan
from synpro_engine.cycle.rates import Rates, measured_rates
from synpro_engine.dist import Layout, ParallelConfig, launched
from synpro_engine.model.build import build_model
from synpro_engine.model.pretrained import read_shape
from synpro_engine.train.checkpoint import save_checkpoint
from synpro_engine.train.footprint import Footprint
from synpro_engine.train.metrics import METRICS, flops_per_token
from tests.cli.refusals import refused


def costs(name: str, overrides: Sequence[str] = (), ranks: int = 1) -> Forecast:
    return forecast(load_recipe(name, overrides), ranks)


@pytest.mark.parametrize("overrides", [[], ["rounds=2"], ["tune={}"], ["generate.operations=[rephrase]", "tune={}"]])
def test_the_stages_are_those_of_the_run_in_their_order(tmp_path: Path, overrides: list[str]) -> None:
    recipe = load_recipe("smoke", overrides)
    with launched(ParallelConfig()) as topology:
        stages = [stage.name for stage in Plan(recipe, tmp_path, topology).stages()]
    assert [cost.stage for cost in forecast(recipe, 1).costs] == stages


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_can_be_planned_without_its_files(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["plan", name]) == 0
    out = capsys.readouterr().out
    assert "in all" in out and "round-1/probe" in out
    assert main(["run", name, "--dry-run"]) == 0
    assert capsys.readouterr().out == out
    assert not list(tmp_path.iterdir())


def test_tokens_and_flops_of_pretraining_are_steps_times_batch_and_the_papers_arithmetic() -> None:
    plan = costs("synpro-400m", ranks=16)
    pretrain = next(cost for cost in plan.costs if cost.stage == "pretrain")
    recipe = plan.recipe
    assert pretrain.tokens == 7280 * 1_048_576
    per_token = flops_per_token(recipe.model, 2048)
    assert per_token == pytest.approx(6 * (474.0e6 - 100_352 * 1024) + 12 * 16 * 1024 * 2048, rel=1e-3)
    # A third as much for each held-out token, of the validation split and the reference: some percent of all.
    evaluations = 7280 // 100 + 1
    assert pretrain.flops / per_token - pretrain.tokens == pytest.approx(evaluations * 15.2e6 / 3, rel=0.05)
    assert pretrain.tokens * per_token < pretrain.flops < 1.06 * pretrain.tokens * per_token


def test_evaluation_measures_a_sample_of_the_texts_however_many_there_are() -> None:
    by_cap = [costs("synpro-400m", [f"corpus.max_train_tokens={cap}"], 16).costs[-1] for cap in (10**8, 10**9)]
    assert by_cap[0] == by_cap[1]
    # Three arms on the validation split; 2,000 texts of each operation and their sources, at their longest.
    assert by_cap[0].tokens == 3 * 2_097_152 + 2 * 2 * 2000 * 2048
    more = costs("synpro-400m", ["held_out={tasks: {source: x, max_tokens: 1000}}"], 16).costs[-1]
    assert more.tokens is not None and more.tokens == by_cap[0].tokens + 3 * 1000


def test_the_sum_of_tokens_counts_those_that_pass_through_a_model(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "synpro-400m", "--ranks", "16"]) == 0
    total = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("in all"))
    stages = [cost for cost in costs("synpro-400m", ranks=16).costs if "shards" not in cost.stage]
    assert stages[0].stage == "tokenize"
    assert float(total.split()[2].removesuffix("B")) == pytest.approx(
        sum(cost.tokens or 0 for cost in stages[1:]) / 1e9, rel=5e-3
    )


def test_files_that_are_not_there_are_named_by_their_keys(tmp_path: Path) -> None:
    (tmp_path / "tasks.jsonl").write_text("{}")
    own = f"own: {{source: {tmp_path / 'tasks.jsonl'}}}"
    named = [
        "tokenizer.path=no-tokenizer",
        f"references={{flan: {{source: no-flan}}, brought: {{source: embedded:boolq/train}}, {own}}}",
        "held_out={more: {source: no-more}}",
        "corpus.split={train: 0.9, reference: 0.0, validation: 0.1}",
        "reward.faithfulness_judge=no-head.json",
        "reward.judges.similarity={encoder: no-encoder, layer: 1}",
    ]
    remarks = [remark for remark in costs("smoke", named).remarks if remark.endswith(" is not there")]
    assert remarks == [
        "`tokenizer.path`: no-tokenizer is not there",
        "`references.flan.source`: no-flan is not there",
        "`held_out.more.source`: no-more is not there",
        "`reward.faithfulness_judge`: no-head.json is not there",
        "`reward.judges.similarity.encoder`: no-encoder is not there",
    ]
    assert not any("is not there" in remark for remark in costs("smoke").remarks)


def test_time_is_flops_at_the_rate_of_pretraining_and_draws_at_the_samplers() -> None:
    plan = costs("synpro-400m", ranks=16)
    by_stage = {cost.stage: cost for cost in plan.costs}
    pretrain, tune = by_stage["pretrain"], by_stage["round-1/tune-rephrase"]
    assert plan.seconds(pretrain, Rates()) is None
    assert plan.seconds(pretrain, Rates(trained=1e6)) == pytest.approx(7280 * 1.048576, rel=0.06)
    assert plan.seconds(tune, Rates(trained=1e6)) is None, "how fast the sampler is has not been said"
    slow, fast = (plan.seconds(tune, Rates(trained=1e6, sampled=rate)) for rate in (1e4, 1e5))
    assert slow is not None and fast is not None
    assert slow - fast == pytest.approx(tune.sampled * (1e-4 - 1e-5))


def test_what_a_server_samples_costs_the_job_no_cache_and_no_flops_and_its_weights_a_place_on_the_disk() -> None:
    alone, served = costs("smoke"), costs("smoke", ["generate.server.endpoint=http://127.0.0.1:8000/v1"])
    for own, other in zip(alone.costs, served.costs, strict=True):
        if "/generate-" in own.stage:
            assert (other.flops < own.flops, other.memory < own.memory, other.disk > own.disk) == (True, True, True)
            assert other.sampled == own.sampled
        else:
            assert other == own
    assert any("generate.server" in remark for remark in served.remarks)


def test_rewards_that_generation_does_not_measure_cost_it_nothing() -> None:
    whole, some, none = (costs("smoke", [f"generate.rewards={told}"]) for told in ("all", "[influence]", "[]"))
    for a, b, c in zip(whole.costs, some.costs, none.costs, strict=True):
        assert a.flops > b.flops > c.flops if "/generate-" in a.stage else a == b == c


def test_measurements_on_what_is_held_out_are_drawn_and_scored_and_count_with_tuning() -> None:
    settings = "tune.rephrase.held_out={{every: {every}, slices: 10, members: 4, facts: 6}}"
    without, with_it = (
        {cost.stage: cost for cost in costs("smoke", [settings.format(every=every)]).costs} for every in (0, 2)
    )
    changed = [stage for stage, cost in with_it.items() if cost != without[stage]]
    assert changed == ["round-1/tune-rephrase"]
    alone, measured = without[changed[0]], with_it[changed[0]]
    # Before, after step 2, and after the last, which is the third.
    assert measured.sampled - alone.sampled == 3 * (10 + 6) * 4 * 32  # six more with planted facts
    assert alone.tokens is not None and measured.tokens == alone.tokens + 3 * (10 + 6) * 4 * (700 + 32)
    assert alone.flops < measured.flops and measured.held == alone.held and measured.disk == alone.disk


def test_an_earlier_run_gives_the_rates(tmp_path: Path) -> None:
    def write(place: str, records: list[dict[str, Any]]) -> None:
        (tmp_path / place).mkdir(parents=True)
        (tmp_path / place / METRICS).write_text("".join(json.dumps(record) + "\n" for record in records))

    with pytest.raises(UserError, match="no steps with tokens_per_s"):
        measured_rates(tmp_path)
    write("pretrain", [{"kind": "train", "step": n, "tokens_per_s": rate} for n, rate in enumerate((1.0, 90.0, 100.0))])
    assert measured_rates(tmp_path) == Rates(trained=90.0, sampled=None)
    write("round-1/tune-rephrase", [{"kind": "tune", "step": 1, "tokens": 300.0, "seconds/rollout": 2.0}])
    assert measured_rates(tmp_path) == Rates(trained=90.0, sampled=150.0)


def test_a_corpus_that_is_there_is_measured_by_its_files(tmp_path: Path) -> None:
    source = tmp_path / "text.jsonl"
    source.write_text(json.dumps({"id": "a", "text": "word " * 2000}) + "\n")
    small = costs("smoke", [f"corpus.source={source}"])
    assert small.costs[0].tokens == pytest.approx(0.8 * 10_000 / 4.3, rel=0.01)
    assert any("guessed" in remark for remark in small.remarks)
    missing = costs("smoke", [f"corpus.source={tmp_path / 'gone.jsonl'}"])
    assert missing.costs[0].tokens == 20_000 and "gone.jsonl" in missing.remarks[0]


def test_a_corpus_of_token_ids_is_measured_too_and_an_embedded_generator_by_its_header(tmp_path: Path) -> None:
    np.save(tmp_path / "ids.npy", np.zeros(3000, np.uint16))
    plan = costs("quickstart", [f"corpus.shards={tmp_path}", "tokenizer.path=x", "corpus.max_train_tokens=null"])
    assert plan.costs[0].tokens == pytest.approx(0.8 * 3000, rel=0.1)
    imported = next(cost for cost in plan.costs if cost.stage == "import")
    assert imported.disk == pytest.approx(134.5e6 * 4, rel=0.01), "SmolLM2 in fp32"
    assert not any("generator" in remark for remark in plan.remarks)


def test_a_layout_that_cannot_run_it_is_refused_before_anything_is_counted(capsys: pytest.CaptureFixture[str]) -> None:
    line = refused(capsys, "plan", "synpro-400m", "--ranks", "64")
    assert "`tune.rephrase.prompts_per_step`: 16 cannot be divided by 64" in line
    assert "tp 3 x pp 1 does not divide" in refused(capsys, "plan", "smoke", "parallel.tp=3", "--ranks", "4")
    assert "`model.heads`" in refused(capsys, "plan", "smoke", "parallel.tp=3")
    assert "--measured" in refused(capsys, "plan", "smoke", "--measured", "nowhere")
    rank = refused(capsys, "plan", "quickstart", "tune.rephrase.lora.rank=576")
    assert "`tune.rephrase.lora.rank`: 576 is not below the generator's width 576" in rank
    blocks = refused(capsys, "plan", "quickstart", "tune.reformat.train_last_blocks=31")
    assert "`tune.reformat.train_last_blocks`: 31 is more than the generator's 30 blocks" in blocks


def test_weights_that_do_not_train_have_no_gradients_and_are_the_references_too() -> None:
    def held(*given: str) -> Mapping[str, float]:
        found = {cost.stage: cost for cost in costs("quickstart", ["dtype=float32", *given]).costs}
        return found["round-1/tune-rephrase"].held

    whole, last = held("tune.rephrase.train_last_blocks=null"), held()
    adapters, without = held("tune.rephrase.lora.rank=8"), held("tune.rephrase.kl_beta=0")
    trained, reference = "weights, gradients, optimizer", "reference policy"
    assert set(whole) <= set(NEEDED)
    assert whole[reference] == 134_515_008 * 4 and whole[trained] == 4 * whole[reference]
    assert adapters[trained] < last[trained] < whole[trained]
    assert reference not in adapters and 0 == without[reference] < last[reference] < whole[reference]


@pytest.mark.parametrize(
    ("group_size", "micro_batch", "rows", "completions"), [(4, 8, 2, 4), (8, 4, 1, 4), (8, 12, 1, 8)]
)
def test_tuning_keeps_the_mask_of_rows_that_completions_of_a_prompt_share(
    group_size: int, micro_batch: int, rows: int, completions: int
) -> None:
    settings = {"group_size": group_size, "micro_batch": micro_batch, "train_last_blocks": "null"}
    given = ["dtype=float32", *(f"tune.rephrase.{name}={value}" for name, value in settings.items())]
    recipe, plan = load_recipe("quickstart", given), costs("quickstart", given)
    generator = read_shape(recipe.generator.source, recipe.generator.seq_len)
    length = recipe.prompt.max_tokens + completions * recipe.tune["rephrase"].sampling.max_new_tokens
    plain = Footprint(generator, Layout.of(ParallelConfig(), 1), torch.float32).activations(rows, length)
    [tuned] = [cost for cost in plan.costs if cost.stage == "round-1/tune-rephrase"]
    assert tuned.held["activations"] == pytest.approx(plain + 4 * rows * length**2, rel=1e-9)


def test_what_waits_on_the_host_counts_in_the_phases_that_need_it() -> None:
    def tuned(*given: str) -> tuple[Cost, Forecast]:
        plan = costs("quickstart", ["dtype=float32", "tune.rephrase.train_last_blocks=null", *given])
        return next(cost for cost in plan.costs if cost.stage == "round-1/tune-rephrase"), plan

    (plain, _), (parked, plan) = tuned(), tuned("tune.rephrase.residency=parked")
    (graphs, _) = tuned("tune.rephrase.residency=parked", "tune.rephrase.sampler.graphs=true")
    held = parked.held
    assert held == plain.held and plain.memory == sum(held.values()) and not plain.parked
    throughout = held["weights, gradients, optimizer"] + held["activations"] + held["a block of logits"]
    asked = held["pretrained model and probe"] + held["generator as it came"] + held["judges"]
    assert parked.in_phase("rollout") == throughout + held["keys and values"]
    assert parked.in_phase("score") == throughout + asked
    assert parked.in_phase("reference") == throughout + held["reference policy"] > parked.in_phase("update")
    assert parked.memory == max(map(parked.in_phase, ("rollout", "score", "reference"))) < plain.memory
    assert parked.parked == asked + held["reference policy"]
    assert any("pinned memory" in remark for remark in plan.remarks)
    assert graphs.in_phase("update") == parked.in_phase("update") + held["keys and values"]


def test_a_plan_says_what_muon_s_sampled_steps_take_of_the_host() -> None:
    asked = [
        "pretrain.optimizer.name=muon",
        "dtype=float32",
        "probe.kind=next_step",
        "probe.sampled_steps=8",
        "influence.estimator=auto",
    ]
    recipe = load_recipe("synpro-400m", asked)
    matrices = recipe.model.parameter_count(embeddings=False)

    def said(*overrides: str, ranks: int = 1) -> str:
        [remark] = [r for r in costs("synpro-400m", [*asked, *overrides], ranks).remarks if "round-1/probe" in r]
        return remark

    assert f"{9 * 4 * matrices / 2**30:.2f} GiB a rank of Muon's sampled momenta" in said()
    halves = said("pretrain.optimizer.muon.products=bfloat16", ranks=4)
    assert f"{9 * 2 * matrices / 4 / 2**30:.2f} GiB a rank" in halves
    assert not any("momenta" in remark for remark in costs("synpro-400m").remarks)


def test_models_that_judge_take_memory_and_flops_where_they_are_asked_and_each_once() -> None:
    drop = ["dtype=float32", *(f"tune.{name}.bad_reward=drop_group" for name in ("rephrase", "reformat"))]
    question = "question: {type: truth, ask: 'Is it clear?'}"
    judges = [
        "reward.judges.structure={model: embedded:smollm2-135m}",
        f"reward.judges.clear={{model: embedded:smollm2-135m, {question}}}",
    ]
    plain = {cost.stage: cost for cost in costs("smoke", drop).costs}
    asked = {cost.stage: cost for cost in costs("smoke", [*drop, *judges]).costs}
    weights = 134_515_008 * 4
    # Structure is a reward of paraphrases, and what nothing weighs is asked of generated texts.
    for stage in ("tune-rephrase", "generate-rephrase", "generate-reformat"):
        assert asked[f"round-1/{stage}"].memory - plain[f"round-1/{stage}"].memory == weights
        assert asked[f"round-1/{stage}"].flops > plain[f"round-1/{stage}"].flops
    assert asked["round-1/tune-reformat"] == plain["round-1/tune-reformat"]
    lost = costs("smoke", [*drop, "reward.judges.structure={model: nowhere}"])
    assert any("`reward.judges.structure.model`" in remark for remark in lost.remarks)


@pytest.mark.parametrize("asks", ["the recipe", "an arm"])
def test_an_arm_takes_memory_for_the_judges_that_it_has(asks: str) -> None:
    drop = ["dtype=float32", *(f"tune.{name}.bad_reward=drop_group" for name in ("rephrase", "reformat"))]
    judge, none = "{judges: {structure: {model: embedded:smollm2-135m}}}", "{judges: {structure: null}}"
    own, recipes = (none, [f"reward={judge}"]) if asks == "the recipe" else (judge, [])
    arms = f"arms={{plain: {{text: tuned}}, other: {{text: tuned, reward: {own}}}}}"
    held = {cost.stage: cost.held.get("judges") for cost in costs("smoke", [*drop, *recipes, arms]).costs}
    weights = 134_515_008 * 4
    plain, other = (weights, 0.0) if asks == "the recipe" else (0.0, weights)
    assert held["arms/plain/round-1/tune-rephrase"] == plain
    assert held["arms/other/round-1/tune-rephrase"] == other


def test_teachers_take_their_weights_and_a_third_of_a_step_of_theirs(tmp_path: Path) -> None:
    student = load_recipe("smoke").model
    wide = student.model_copy(update={"d_model": 2 * student.d_model})
    with launched(ParallelConfig()) as topology:
        save_checkpoint(tmp_path / "teacher", build_model(wide, topology))
    taught = [f"pretrain.distill.teachers=[{tmp_path / 'teacher'},{tmp_path / 'later'}]", "pretrain.in_run=null"]

    def trained(overrides: list[str], *layout: str, ranks: int = 1) -> tuple[Forecast, list[Cost]]:
        plan = costs("smoke", ["dtype=float32", "pretrain.in_run=null", *overrides, *layout], ranks)
        return plan, [cost for cost in plan.costs if cost.stage in ("pretrain", "repeat", "round-1/continue")]

    plan, with_teachers = trained(taught)
    read = flops_per_token(wide, student.seq_len) / 3
    for cost, alone in zip(with_teachers, trained([])[1], strict=True):
        assert cost.tokens is not None and cost.tokens == alone.tokens
        assert cost.memory - alone.memory == cost.held["teachers"] == wide.parameter_count() * 4
        assert cost.flops - alone.flops == pytest.approx(cost.tokens * read)
    # The rate is that of pretraining with them, so that its time stays tokens by tokens a second.
    seconds = plan.seconds(with_teachers[0], Rates(trained=1e3))
    assert seconds == pytest.approx(with_teachers[0].flops / (1e3 * (flops_per_token(student, student.seq_len) + read)))
    assert any("`pretrain.distill.teachers`" in remark and "later" in remark for remark in plan.remarks)
    cut = trained(taught, "parallel.tp=2", ranks=2)[1][0]
    assert cut.held["teachers"] == pytest.approx(wide.parameter_count() * 4 / 2, rel=0.02)
    several = trained(taught, ranks=2)[1][0]
    assert several.held["teachers"] == with_teachers[0].held["teachers"], "data-parallel ranks each hold all of them"
    # In a pipeline the last stage holds what they made of a step's tokens.
    staged, recipe = trained(taught, "pretrain.parallel.pp=2", ranks=2)[1][0], load_recipe("smoke")
    step = recipe.pretrain.global_batch * student.seq_len
    blocks, whole = wide.parameter_count(embeddings=False), wide.parameter_count()
    tables = (whole - blocks) / (1 if wide.tie_embeddings else 2)
    assert staged.held["teachers"] == 4 * (blocks / 2 + tables + step * wide.d_model)
    with pytest.raises(UserError, match=r"reads \d+ tokens at most"):
        trained(taught, f"model.seq_len={2 * student.seq_len}")
    ways = choices(load_recipe("smoke", taught), 2, Machine())
    assert {one.layout.pp for one in ways} == {1, 2}
