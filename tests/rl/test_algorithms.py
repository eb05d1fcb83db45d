"""Each published method as a whole: it learns, resumes exactly, and its settings fit together or are refused."""

import math
import runpy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from synpro_engine.config import UserError, load_config
from synpro_engine.cycle import load_recipe
from synpro_engine.dist import Topology
from synpro_engine.model.shared_rows import SharedRows
from synpro_engine.reward import Composer
from synpro_engine.rl.config import PRESETS, ImportanceConfig, TuneConfig
from synpro_engine.rl.credit import with_advantages
from synpro_engine.rl.critic import Critic
from synpro_engine.rl.policy import PolicyLoss, corrected
from synpro_engine.rl.rollouts import RolloutWorker
from synpro_engine.rl.types import Prompt, Rollout, RolloutBatch
from synpro_engine.sampler import Completion, Sampler
from synpro_engine.synth import Candidate, Parsed, PromptConfig, Prompter, Slice
from synpro_engine.train.metrics import read_metrics

_HELPERS = runpy.run_path(str(Path(__file__).with_name("algorithms.py")))
PROMPT = PromptConfig(keep_truncated=True, chat_format="plain")
WAYS, config_of, toy = _HELPERS["WAYS"], _HELPERS["config_of"], _HELPERS["toy"]


def steps_of(directory: Path) -> list[dict[str, Any]]:
    return [record for record in read_metrics(directory / "metrics.jsonl") if record["kind"] == "tune"]


@pytest.mark.parametrize("way", WAYS)
def test_every_method_raises_the_reward(topology: Topology, tmp_path: Path, way: str) -> None:
    toy()["run"](topology, tmp_path, config_of(way, steps=16, micro_batch=24))
    steps = steps_of(tmp_path)
    rewards = [step["reward"] for step in steps]
    assert sum(rewards[-4:]) / 4 > sum(rewards[:2]) / 2 + 0.1, rewards
    first = next(step for step in steps if step["loss"] is not None)  # while a critic warms up the policy waits
    assert first["sampler_gap"] < 1e-5 and first["ess"] <= 1.0 + 1e-6
    assert not any(step["skipped"] for step in steps)


@pytest.mark.parametrize("way", ["dapo", "reinforce_pp", "minibatches", "ppo", "adapters"])
def test_a_killed_run_ends_as_one_that_was_not(topology: Topology, tmp_path: Path, way: str) -> None:
    config = config_of(way, steps=5, checkpoint_every=2)
    _, whole = toy()["run"](topology, tmp_path / "whole", config)
    with pytest.raises(KeyboardInterrupt):
        toy()["run"](topology, tmp_path / "killed", config, kill_after=4)
    _, resumed = toy()["run"](topology, tmp_path / "killed", config)
    for (name, a), (_, b) in zip(whole.named_parameters(), resumed.named_parameters(), strict=True):
        assert torch.equal(a, b), name


@pytest.mark.parametrize(("begun", "gone_on"), [({"rank": 4}, {"rank": 5}), (None, {"rank": 4}), ({"rank": 4}, None)])
def test_a_run_goes_on_with_its_own_adapters_alone(
    topology: Topology, tmp_path: Path, begun: dict[str, int] | None, gone_on: dict[str, int] | None
) -> None:
    with pytest.raises(KeyboardInterrupt):
        toy()["run"](topology, tmp_path, config_of("grpo", lora=begun, checkpoint_every=1), kill_after=2)
    with pytest.raises(UserError, match=r"belongs to a run of other settings: `lora"):
        toy()["run"](topology, tmp_path, config_of("grpo", lora=gone_on, checkpoint_every=1))


def test_groups_without_a_signal_are_replaced_by_those_of_other_slices(topology: Topology, tmp_path: Path) -> None:
    # Two letters a completion: in most groups none has the letters that are rewarded.
    short = {"sampling": {"max_new_tokens": 2, "top_p": 1.0}, "steps": 1, "group_size": 3}
    for refills in (0, 6):
        toy()["run"](topology, tmp_path / str(refills), config_of("grpo", refills=refills, **short))
    without, with_them = (steps_of(tmp_path / name) for name in ("0", "6"))
    assert "refilled_groups" not in without[0] and without[0]["silent_groups"] > 0.0
    assert with_them[0]["refilled_groups"] > 0 and with_them[0]["silent_groups"] < without[0]["silent_groups"]


def test_completions_that_were_cut_off_teach_nothing_where_they_are_masked(topology: Topology, tmp_path: Path) -> None:
    # Of three letters nearly every completion is cut off.
    cut = {"sampling": {"max_new_tokens": 3, "top_p": 1.0}, "steps": 1}
    _, policy = toy()["run"](topology, tmp_path, config_of("grpo", mask_truncated=True, **cut))
    (step,) = steps_of(tmp_path)
    assert step["finished"] == 0.0 and step["loss"] == 0.0 and step["grad_norm"] == 0.0
    assert step["entropy"] is step["ratio"] is step["ess"] is step["sampler_gap"] is None
    fresh = toy()["build"](topology)
    for (name, a), (_, b) in zip(policy.named_parameters(), fresh.named_parameters(), strict=True):
        assert torch.equal(a, b), name


@pytest.mark.parametrize(
    ("way", "expected"),
    [
        ({"baseline": "group", "scale": "none"}, 0.5),
        # Of three tokens and one that was cut off, whose reward is 0; a critic's own alone.
        ({"baseline": "batch", "scale": "none"}, 0.25),
        ({"baseline": "critic", "scale": "batch", "critic": {}}, 0.0),
    ],
    ids=str,
)
def test_completions_that_were_cut_off_are_compared_with(
    topology: Topology, way: dict[str, Any], expected: float
) -> None:
    config = config_of("grpo", mask_truncated=True, group_size=2, kl_beta=0.0, **way)
    batch = replace(batch_of([-1.0] * 4, [3, 1]), value_N=torch.zeros(4))
    whole, cut = rollout_of(1.0, length=3), replace(rollout_of(0.0, length=1), member=1, masked=True)
    [found, _], _ = with_advantages([whole, cut], [batch], config, {}, topology)
    assert found.advantage == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("divisor", ["n", "n-1"])
@pytest.mark.parametrize("way", [{"baseline": "batch"}, {"baseline": "critic", "critic": {}}], ids=str)
def test_a_token_that_is_compared_with_no_other_has_no_advantage(
    topology: Topology, way: dict[str, Any], divisor: str
) -> None:
    settings = {"scale": "batch", "std_divisor": divisor, "group_size": 2, "kl_beta": 0.0, "bad_reward": "drop_group"}
    batch = replace(batch_of([-1.0] * 2, [1, 1]), value_N=torch.zeros(2))
    alone, dropped = rollout_of(0.7, length=1), replace(rollout_of(math.nan, length=1), dropped=True)
    [found, _], _ = with_advantages([alone, dropped], [batch], config_of("grpo", **settings, **way), {}, topology)
    assert found.advantage == 0.0


def rollout_of(reward: float, length: int) -> Rollout:
    words = Candidate(operation="toy", source="", raw="a", parsed=Parsed(ok=True, text="a"))
    ids = [1] * length
    completion = Completion(token_ids=ids, logprobs=[-1.0] * length, full_logprobs=[], nuclei=None, finished=True)
    prompt = Prompt(source=Slice(doc_id="d", start=0, end=1, text="x"), token_ids=[1])
    return Rollout(prompt=prompt, member=0, completion=completion, candidate=words, reward=reward, parts={})


def test_minibatches_without_tokens_that_count_are_not_what_the_log_shows(topology: Topology, tmp_path: Path) -> None:
    # One completion each, of which most are cut off.
    settings = {"steps": 6, "minibatches": 24, "mask_truncated": True, "optimizer": {"lr": 1e-30}}
    toy()["run"](topology, tmp_path, config_of("grpo", sampling={"max_new_tokens": 8, "top_p": 1.0}, **settings))
    steps = steps_of(tmp_path)
    assert all(0.0 < step["finished"] < 0.7 for step in steps)
    # Nearly uniform over 32 letters, and a policy that stays as it is.
    assert all(step["entropy"] > 2.5 and step["ratio"] == pytest.approx(1.0, abs=1e-3) for step in steps)


def test_a_critic_learns_to_foretell_the_reward(topology: Topology, tmp_path: Path) -> None:
    critic = {"optimizer": {"lr": 1e-2, "weight_decay": 0.0}, "warmup_steps": 15, "train_last_blocks": 2}
    config = config_of("ppo", steps=16, micro_batch=24, critic=critic, updates_per_rollout=6)
    _, policy = toy()["run"](topology, tmp_path, config)
    steps = steps_of(tmp_path)
    assert abs(steps[0]["critic/explained_variance"]) < 1e-6 and steps[0]["critic/value"] == 0.0
    assert steps[-1]["critic/explained_variance"] > 0.2
    assert [step["loss"] is None for step in steps] == [True] * 15 + [False]
    assert sorted(path.name for path in (tmp_path / "checkpoints" / "critic").iterdir())[-1] == "step-00000016"
    assert not any("value_head" in name for name, _ in policy.named_parameters())


def test_values_are_learnt_by_the_formula_of_clipped_values(topology: Topology) -> None:
    config = config_of("ppo", critic={"clip": 0.1})
    critic = Critic(toy()["build"](topology), config, "toy")
    batch = batch_of([-1.0] * 4, [3, 1])
    value, future = torch.tensor([0.5, -0.05, 0.2, 0.0]), torch.tensor([1.0, 0.3, -1.0, 0.0])
    batch = replace(batch, value_N=value, return_N=future, weight_N=torch.tensor([1.0, 2.0, 0.5, 0.0]))
    model = critic.engine.model
    terms = critic.loss(model, model.hidden(batch.tokens_BS, batch.rows), batch)
    # The head is of zeros, so every value is 0 and moves from the rollout's by no more than the clip.
    held = value + (-value).clamp(-0.1, 0.1)
    expected = 0.5 * (batch.weight_N * torch.maximum(future.square(), (held - future).square())).sum()
    torch.testing.assert_close(terms.objective.detach(), expected)
    assert float(terms.extras["tokens"]) == 3.0 and float(terms.extras["clipped"]) == 1.0


def batch_of(behaviour: list[float], lengths: list[int]) -> RolloutBatch:
    labels = torch.full((len(lengths), max(lengths)), -100)
    for row, length in enumerate(lengths):
        labels[row, :length] = 1
    values = torch.tensor(behaviour)
    return RolloutBatch(
        places=tuple(range(len(lengths))), lengths=tuple(lengths), tokens_BS=torch.zeros_like(labels),
        labels_BS=labels, behaviour_N=values, weight_N=torch.ones_like(values), nuclei=None,
        rows=SharedRows(position_BS=torch.zeros_like(labels), part_BS=torch.ones_like(labels), longest=1),
    )  # fmt: skip


def test_a_stale_sampler_is_corrected_for_by_the_ratio_of_probabilities() -> None:
    batch, own = batch_of([-1.0, -1.0, -1.0], [2, 1]), torch.tensor([-0.9, -3.0, 0.0])
    token = corrected(batch, own, ImportanceConfig(cap=2.0))
    assert torch.equal(token.behaviour_N, own) and torch.equal(token.weight_N, batch.weight_N)
    assert token.correction_N is not None
    torch.testing.assert_close(token.correction_N, torch.tensor([0.1, -2.0, 1.0]).exp().clamp(max=2.0))
    whole = corrected(batch, own, ImportanceConfig(cap=8.0, level="sequence", beyond="reject"))
    assert whole.correction_N is not None
    torch.testing.assert_close(whole.correction_N, torch.tensor([-1.9, -1.9, 1.0]).exp())
    assert whole.weight_N.tolist() == [1.0, 1.0, 1.0]
    strict = corrected(batch, own, ImportanceConfig(cap=4.0, level="sequence", beyond="reject"))
    assert strict.weight_N.tolist() == [0.0, 0.0, 1.0]


def test_the_gap_to_a_stale_sampler_is_logged_though_ratios_are_to_the_trainer(topology: Topology) -> None:
    config, policy = config_of("grpo", importance={}, sampling={"max_new_tokens": 4}), toy()["build"](topology)
    batch, own = batch_of([-1.0, -1.0, -1.0], [2, 1]), torch.tensor([-0.9, -3.0, 0.0])
    batch = replace(corrected(batch, own, ImportanceConfig()), advantage_N=torch.ones(3))
    terms = PolicyLoss(config, None)(policy, policy.hidden(batch.tokens_BS, batch.rows), batch)
    assert float(terms.extras["gap"]) == pytest.approx(0.1 + 2.0 + 1.0)


def test_a_group_whose_sums_are_alike_has_a_signal_where_rewards_are_compared_one_by_one(topology: Topology) -> None:
    words = Candidate(operation="toy", source="", raw="a", parsed=Parsed(ok=True, text="a"))
    completion = Completion(token_ids=[1], logprobs=[0.0], full_logprobs=[0.0], nuclei=None, finished=True)
    prompt = Prompt(source=Slice(doc_id="d", start=0, end=1, text="x"), token_ids=[1])
    parts = [{"x": 1.0, "y": 0.0}, {"x": 0.0, "y": 1.0}, {"x": 0.5, "y": 0.5}, {"x": 0.5, "y": 0.5}]
    rollouts = [
        Rollout(prompt=prompt, member=at % 2, completion=completion, candidate=words, reward=1.0, parts=part)
        for at, part in enumerate(parts)
    ]
    for normalisation, silent in (("group", [0, 1]), ("per_reward", [1])):
        config = config_of("grpo", normalisation=normalisation, group_size=2, prompts_per_step=2)
        sampler, prompter = Sampler(toy()["build"](topology)), Prompter(toy()["OPERATION"], toy()["Letters"](), PROMPT)
        worker = RolloutWorker(sampler, Composer([], {}), {}, prompter, config, topology, seed=0)
        assert worker.silent(rollouts) == silent


def test_a_completion_that_was_cut_off_is_punished_whole_wherever_its_limit_is(topology: Topology) -> None:
    """By the length of its prompt, by `max_new_tokens`, and by what the context leaves, which is of 64 tokens."""
    limits = {8: 4, 30: 10, 60: 4}
    prompts = [Prompt(source=Slice(doc_id="d", start=0, end=1, text="x"), token_ids=[1] * length) for length in limits]
    sampling = {"temperature": 1.0, "max_new_tokens": 10, "max_new_ratio": 0.5}
    config = config_of("dapo", prompts_per_step=3, sampling=sampling)
    assert config.overlong is not None
    sampler, prompter = Sampler(toy()["build"](topology)), Prompter(toy()["OPERATION"], toy()["Letters"](), PROMPT)
    worker = RolloutWorker(sampler, Composer([], {}), {}, prompter, config, topology, seed=0)
    rollouts = worker.score(prompts, range(3), worker.sample(prompts, 0, range(3))).rollouts
    cut = [rollout for rollout in rollouts if not rollout.completion.finished]
    assert {(len(r.prompt.token_ids), len(r.completion.token_ids)) for r in cut} == set(limits.items())
    assert {rollout.parts["overlong"] for rollout in cut} == {-config.overlong.penalty}


@pytest.mark.parametrize("algorithm", sorted(PRESETS))
def test_a_method_named_is_its_settings_and_what_is_given_beside_it_counts(algorithm: str) -> None:
    config = TuneConfig.model_validate({"algorithm": algorithm})
    for name, value in PRESETS[algorithm].items():
        found = getattr(config, name)
        assert found == value or (value == {} and found is not None), name
    assert TuneConfig.model_validate({"algorithm": algorithm, "clip_high": 0.7}).clip_high == 0.7
    assert load_config(TuneConfig, config.model_dump(mode="json")) == config


@pytest.mark.parametrize("recipe", ["synpro-400m", "synpro-1.1b", "slowrun-100m", "quickstart"])
def test_a_method_named_over_a_recipe_has_all_of_its_settings(recipe: str) -> None:
    tune = load_recipe(recipe, ["tune.rephrase.algorithm=dapo"]).tune["rephrase"]
    assert (tune.kl_beta, tune.clip_high, tune.refills, tune.overlong is not None) == (0.0, 0.28, 3, True)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"algorithm": "grppo"}, "algorithm"),
        ({"group_size": 1}, "group_size: baseline group compares at least 2"),
        ({"baseline": "batch"}, "scale: baseline batch has no groups to scale by"),
        ({"kl": "k1"}, "kl: the gradient of k1 in the loss is 0 on average"),
        ({"surrogate": "reinforce", "minibatches": 2}, "surrogate: reinforce has no ratio"),
        ({"surrogate": "cispo", "dual_clip": 3.0}, "dual_clip: cispo has no clip"),
        ({"normalisation": "per_reward", "baseline": "leave_one_out"}, "normalisation: per_reward compares within"),
        ({"normalisation": "per_reward", "kl_in": "reward"}, "normalisation: per_reward compares each reward alone"),
        ({"normalisation": "per_reward", "scale": "batch"}, "normalisation: per_reward scales by each group"),
        (
            {"shuffled": ["quality", "format"], "without": ["format"]},
            "shuffled: `format` is in `without` too, and has no weight to be shuffled",
        ),
        ({"baseline": "critic", "scale": "batch"}, "critic: is there with baseline: critic alone"),
        ({"critic": {}}, "critic: is there with baseline: critic alone"),
        ({"baseline": "batch", "scale": "batch", "refills": 1}, "refills: only groups"),
        ({"lora": {}, "optimizer": {"name": "muon"}}, "optimizer.name: muon moves matrices .*, and with lora adapters"),
        ({"surrogate": "clop"}, r"no surrogate `clop` \(did you mean `clip`"),
    ],
)
def test_settings_that_do_not_fit_together_are_refused_by_name(given: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_config(TuneConfig, given)


def test_what_is_left_out_of_an_optimizer_is_tunings_own() -> None:
    given = ["tune.rephrase.optimizer={lr: 0.0001}", "tune.rephrase.algorithm=ppo"]
    tune = load_recipe("smoke", [*given, "tune.rephrase.critic={optimizer: {clip: 2.0}}"]).tune["rephrase"]
    assert (tune.optimizer.lr, tune.optimizer.beta2, tune.optimizer.weight_decay) == (1e-4, 0.999, 0.0)
    assert tune.critic is not None
    critic = tune.critic.optimizer
    assert (critic.lr, critic.beta2, critic.weight_decay, critic.clip) == (1e-5, 0.999, 0.0, 2.0)
