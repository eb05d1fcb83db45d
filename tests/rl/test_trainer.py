"""GRPO as a whole: it learns, it resumes exactly, and it does not depend on the layout."""

import dataclasses
import functools
import json
import runpy
from pathlib import Path
from typing import Any

import pytest
import torch
from megatron.core.transformer.transformer_layer import TransformerLayer

from synpro_engine.config import UserError, load_config
from synpro_engine.dist import Topology
from synpro_engine.model.model import Model
from synpro_engine.rl import learner
from synpro_engine.rl.config import TuneConfig
from synpro_engine.rl.policy import prepare_policy
from synpro_engine.rl.rollouts import PromptSource
from synpro_engine.sampler import SamplerConfig
from synpro_engine.synth import Prompter
from synpro_engine.train.metrics import read_metrics


@functools.cache
def toy() -> dict[str, Any]:
    return runpy.run_path(str(Path(__file__).with_name("toy.py")))


def numbers(directory: Path) -> list[dict[str, Any]]:
    """The records of a run without its clocks."""
    records = read_metrics(directory / "metrics.jsonl")
    return [{k: v for k, v in r.items() if k not in ("time", "kind") and not k.startswith("seconds/")} for r in records]


def test_tuning_raises_the_reward_and_reports_what_it_did(topology: Topology, tmp_path: Path) -> None:
    result, _ = toy()["run"](topology, tmp_path)
    records = read_metrics(tmp_path / "metrics.jsonl")
    assert [record["step"] for record in records] == list(range(1, 13))
    assert result.last_reward > result.first_reward + 0.15
    assert records[0]["reward"] == result.first_reward
    first = records[0]
    assert first["reward"] == pytest.approx(first["reward/share_a"] + 0.25 * first["reward/share_e"])
    assert first["sampler_gap"] < 1e-5 and first["ratio"] == pytest.approx(1.0, abs=1e-5)
    assert first["kl"] == pytest.approx(0.0, abs=1e-7) and records[-1]["kl"] > 0.0
    assert {"entropy", "clip_fraction", "grad_norm", "lr", "length", "seconds/rollout", "seconds/train"} <= first.keys()
    samples = [json.loads(line) for line in (tmp_path / "samples" / "metrics.jsonl").read_text().splitlines()]
    assert [sample["step"] for sample in samples] == list(range(1, 13))
    assert samples[0]["source"] in {"one", "two", "three", "four"} and "completion" in samples[0]


def test_a_killed_run_goes_on_and_ends_with_the_same_numbers_and_weights(topology: Topology, tmp_path: Path) -> None:
    settings = {"steps": 7, "checkpoint_every": 3, "updates_per_rollout": 2, "log_samples": 2}
    config = TuneConfig.model_validate(toy()["CONFIG"].model_dump() | settings)
    _, whole = toy()["run"](topology, tmp_path / "whole", config)
    with pytest.raises(KeyboardInterrupt):
        toy()["run"](topology, tmp_path / "killed", config, kill_after=5)
    assert len(numbers(tmp_path / "killed")) == 5
    result, resumed = toy()["run"](topology, tmp_path / "killed", config)
    assert numbers(tmp_path / "killed") == numbers(tmp_path / "whole")
    samples = [tmp_path / name / "samples" for name in ("killed", "whole")]
    assert numbers(samples[0]) == numbers(samples[1])
    for (name, a), (_, b) in zip(whole.named_parameters(), resumed.named_parameters(), strict=True):
        assert torch.equal(a, b), name
    assert result.policy.is_dir()
    other = config.model_copy(update={"clip_high": 0.5})
    with pytest.raises(UserError, match="`clip_high`"):
        toy()["run"](topology, tmp_path / "killed", other)


@pytest.mark.parametrize(
    ("settings", "passes"),
    [({}, (1, 2)), ({"updates_per_rollout": 2}, (1, 3)), ({"importance": {}}, (1, 3)), ({"kl_beta": 0.0}, (1, 1))],
    ids=str,
)
def test_frozen_blocks_are_read_once_by_policy_and_reference_and_change_nothing(
    topology: Topology, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any],
    passes: tuple[int, int],
) -> None:  # fmt: skip
    """passes: over the frozen block and over one that trains, in a step of one micro-batch; rollouts make none."""
    given = {"steps": 2, "micro_batch": 24, "updates_per_rollout": 1, **settings}
    config = load_config(TuneConfig, toy()["CONFIG"].model_dump() | given)
    read: dict[str, list[int]] = {"kept": [], "whole": []}
    ends = []
    for name in read:
        if name == "whole":
            monkeypatch.setattr(learner, "frozen_blocks", lambda chunk: 0)
        forward = TransformerLayer.forward

        def counted(layer: Any, *args: Any, name: str = name, forward: Any = forward, **kwargs: Any) -> Any:
            read[name].append(layer.layer_number)
            return forward(layer, *args, **kwargs)

        with monkeypatch.context() as patch:
            patch.setattr(TransformerLayer, "forward", counted)
            ends.append(toy()["run"](topology, tmp_path / name, config)[1])
    assert numbers(tmp_path / "kept") == numbers(tmp_path / "whole")
    for (name, a), (_, b) in zip(ends[0].named_parameters(), ends[1].named_parameters(), strict=True):
        assert torch.equal(a, b), name
    assert (read["kept"].count(1), read["kept"].count(3)) == (2 * passes[0], 2 * passes[1])
    assert read["whole"].count(1) == read["whole"].count(3) == 2 * passes[1]


@pytest.mark.parametrize("importance", [None, {}])
def test_a_reference_of_other_weights_lends_the_policy_no_trunk(
    topology: Topology, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, importance: dict[str, Any] | None
) -> None:
    config = toy()["CONFIG"].model_dump() | {"steps": 2, "importance": importance}
    found: list[list[torch.Tensor]] = []
    for name in ("own", "whole"):
        if name == "whole":
            monkeypatch.setattr(learner, "frozen_blocks", lambda chunk: 0)
        policy, other = toy()["build"](topology), toy()["build"](topology)
        with torch.no_grad():
            for parameter in other.parameters():
                parameter.mul_(1.1)
        # The run prepares the policy, freezes its first blocks, and is then given a stranger to hold it against.
        monkeypatch.setitem(toy()["run"].__globals__, "prepare_policy", lambda p, c, other=other: prepared(p, c, other))
        toy()["run"](topology, tmp_path / name, load_config(TuneConfig, config), policy=policy)
        found.append([parameter.detach().clone() for parameter in policy.parameters()])
    assert numbers(tmp_path / "own") == numbers(tmp_path / "whole")
    assert all(map(torch.equal, *found))


def prepared(policy: Model, config: TuneConfig, reference: Model) -> Model:
    prepare_policy(policy, config)
    return reference


def test_the_divergence_that_is_logged_is_a_mean_over_tokens_whatever_the_loss_divides_by(
    topology: Topology, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: dict[str, float] = {}
    for aggregation in ("token", "sequence", "constant"):
        policy, other = toy()["build"](topology), toy()["build"](topology)
        with torch.no_grad():
            for parameter in other.parameters():
                parameter.mul_(1.1)
        monkeypatch.setitem(toy()["run"].__globals__, "prepare_policy", lambda p, c, other=other: prepared(p, c, other))
        config = toy()["CONFIG"].model_copy(update={"steps": 1, "aggregation": aggregation})
        toy()["run"](topology, tmp_path / aggregation, config, policy=policy)
        found[aggregation] = numbers(tmp_path / aggregation)[0]["kl"]
    assert found["token"] > 0.0
    assert found == pytest.approx(dict.fromkeys(found, found["token"]), rel=1e-5)


def test_the_divergence_from_no_reference_is_null_and_not_nought(topology: Topology, tmp_path: Path) -> None:
    config = toy()["CONFIG"].model_copy(update={"steps": 1, "kl_beta": 0.0})
    toy()["run"](topology, tmp_path, config)
    (record,) = numbers(tmp_path)
    assert record["kl"] is None and record["entropy"] > 0.0


def test_an_answer_is_read_together_with_the_heading_it_was_given(topology: Topology, tmp_path: Path) -> None:
    headed = dataclasses.replace(toy()["OPERATION"], prefill="here:\n")
    for name, prefill in (("with", True), ("without", False)):
        config, prompt = toy()["CONFIG"].model_copy(update={"steps": 1}), {"prefill": prefill}
        prompt = toy()["PROMPT"].model_copy(update=prompt)
        toy()["run"](topology, tmp_path / name, config, operation=headed, prompt=prompt)
        (sample,) = read_metrics(tmp_path / name / "samples" / "metrics.jsonl")
        assert sample["completion"].startswith("here:\n") == prefill
        assert sample["text"] == sample["completion"], "the parser is shown the whole answer"


def _prompter() -> Prompter:
    return Prompter(toy()["OPERATION"], toy()["Letters"](), toy()["PROMPT"])


def test_every_slice_is_used_once_before_any_is_used_again(tmp_path: Path) -> None:
    source = PromptSource(toy()["SLICES"], _prompter(), 3, seed=2, longest=63)
    keys = [prompt.key for step in range(4) for prompt in source.at(step)]
    for epoch in range(3):
        assert len(set(keys[4 * epoch : 4 * epoch + 4])) == 4
    assert keys[:4] != keys[4:8] or keys[4:8] != keys[8:], "each pass has an order of its own"


def test_slices_that_make_too_long_prompts_are_left_out_and_none_left_is_a_user_error() -> None:
    arguments = toy()["SLICES"], _prompter(), 16, 0
    lengths = sorted(len(p.token_ids) for p in PromptSource(*arguments, longest=63).prompts)
    some = PromptSource(*arguments, longest=lengths[-1] - 1)
    assert 0 < some.left_out < 4 and all(len(p.token_ids) < lengths[-1] for p in some.prompts)
    with pytest.raises(UserError, match=f"`prompt.max_tokens`.* of toy .*shortest has {lengths[0]}"):
        PromptSource(*arguments, longest=3)


@pytest.mark.parametrize(("longest", "told"), [(10, False), (63, True)])
def test_prompts_that_leave_completions_less_room_than_settings_do_are_told(
    topology: Topology, tmp_path: Path, capsys: pytest.CaptureFixture[str], longest: int, told: bool
) -> None:
    sampling = toy()["CONFIG"].sampling.model_copy(update={"max_new_tokens": longest})
    toy()["run"](topology, tmp_path, toy()["CONFIG"].model_copy(update={"steps": 1, "sampling": sampling}))
    lines = [line for line in capsys.readouterr().err.splitlines() if "tokens of the context" in line]
    assert bool(lines) == told
    if told:
        room = 64 - max(len(p.token_ids) for p in PromptSource(toy()["SLICES"], _prompter(), 4, 0, longest=63).prompts)
        about = "4 of 4 prompts leave fewer than `sampling.max_new_tokens` (63) tokens of the context"
        assert lines == [f"tuning: {about}, the longest of them {room}; completions are cut off there"]


def test_greedy_groups_are_refused() -> None:
    with pytest.raises(ValueError, match="temperature must be above 0"):
        TuneConfig.model_validate({"sampling": {"temperature": 0.0}})


def test_guesses_of_the_sampler_are_counted_and_change_no_number(
    topology: Topology, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beyond rounding: the first step's numbers, for updates magnify what rounding leaves."""
    monkeypatch.setattr("synpro_engine.sampler.sampler.least_hope", lambda *_: 0.0)
    config = toy()["CONFIG"].model_copy(update={"steps": 1})
    toy()["run"](topology, tmp_path / "plain", config)
    toy()["run"](topology, tmp_path / "guessing", config.model_copy(update={"sampler": SamplerConfig(speculate=4)}))
    (plain,), (guessing,) = numbers(tmp_path / "plain"), numbers(tmp_path / "guessing")
    assert 0.0 <= guessing.pop("draft_acceptance") <= 1.0 and guessing.pop("drafted") > 0
    assert guessing.keys() == plain.keys()
    gap = {name: (guessing.pop(name), plain.pop(name)) for name in ("sampler_gap", "kl", "loss")}
    assert guessing == pytest.approx(plain, rel=1e-4)
    assert all(abs(a - b) < 1e-5 for a, b in gap.values())


@pytest.mark.parametrize("cut", [{"top_p": 0.9}, {"top_p": 1.0}], ids=str)
def test_biases_stop_strings_and_loops_are_replayed_by_the_trainer(
    topology: Topology, tmp_path: Path, cut: dict[str, float]
) -> None:
    given = {"logit_bias": {4: 3.0, 27: -2.0}, "stop": ["ea", "x"], "loop_tokens": 12, "max_new_tokens": 30, **cut}
    settings = {"steps": 1, "sampling": given, "sampler": {"speculate": 3}}
    config = TuneConfig.model_validate(toy()["CONFIG"].model_dump() | settings, strict=False)
    toy()["run"](topology, tmp_path, config)
    (record,) = numbers(tmp_path)
    assert record["sampler_gap"] < 1e-5 and record["ratio"] == pytest.approx(1.0, abs=1e-5)
    assert record["kl"] == pytest.approx(0.0, abs=1e-6), "the reference has the same bias"
    assert 0.0 < record["finished"] < 1.0 and record["length"] > 1.0
