"""A reward that is no number: named with its source and completion, and it teaches nothing."""

import math
import runpy
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from synpro_engine.config import UserError
from synpro_engine.dist import Topology
from synpro_engine.reward import Candidate, Composer
from synpro_engine.rl.advantages import group_advantages
from synpro_engine.rl.config import TuneConfig
from synpro_engine.rl.policy import prepare_policy
from synpro_engine.rl.trainer import TuneResult, tune
from synpro_engine.synth import Prompter
from synpro_engine.train.config import SkipConfig
from synpro_engine.train.divergence import DivergedError
from synpro_engine.train.metrics import read_metrics

TOY = runpy.run_path(str(Path(__file__).with_name("toy.py")))


class Judge:
    """The share of `a`, but one value for the completions of some sources."""

    name, range = "judge", (0.0, 1.0)

    def __init__(self, value: float, *sources: str) -> None:
        self._value, self._sources = value, sources

    def __call__(self, candidates: Sequence[Candidate]) -> list[float]:
        of = [c.parsed.text.count("a") / max(1, len(c.parsed.text)) for c in candidates]
        return [self._value if c.source in self._sources else v for c, v in zip(candidates, of, strict=True)]


def run(topology: Topology, directory: Path, judge: Judge, **settings: Any) -> tuple[TuneResult, Any, Any]:
    """Tune the toy; its result, and the policy's parameters before and after."""
    changes = {"steps": 2, "checkpoint_every": 0, "log_samples": 4} | settings
    config = TuneConfig.model_validate(TOY["CONFIG"].model_dump() | changes)
    policy, weights = TOY["build"](topology), {"judge": 1.0}
    reference_policy = prepare_policy(policy, config)
    before = [p.detach().clone() for p in policy.parameters()]
    result = tune(
        config, policy=policy, reference_policy=reference_policy,
        prompter=Prompter(TOY["OPERATION"], TOY["Letters"](), TOY["PROMPT"]), slices=TOY["SLICES"],
        scorer=Composer([judge], {"toy": weights}), reward_weights=weights, directory=directory, seed=1,
    )  # fmt: skip
    return result, before, [p.detach().clone() for p in policy.parameters()]


@pytest.mark.parametrize("value", [math.nan, math.inf, 1.5])
def test_a_bad_reward_stops_tuning_and_names_reward_source_and_completion(
    topology: Topology, tmp_path: Path, value: float
) -> None:
    with pytest.raises(UserError) as caught:
        run(topology, tmp_path, Judge(value, "two"))
    message = str(caught.value)
    assert message.startswith(f"reward judge is {value:g}, not in its range of 0 to 1 for the completion '")
    assert "of source d1:0-3" in message and "`tune.toy.bad_reward: drop_group`" in message and "\n" not in message


@pytest.mark.parametrize("normalisation", ["group", "per_reward"])
@pytest.mark.parametrize("aggregation", ["token", "sequence"])
def test_a_dropped_group_is_counted_and_the_others_learn(
    topology: Topology, tmp_path: Path, normalisation: str, aggregation: str
) -> None:
    ways = {"normalisation": normalisation, "aggregation": aggregation, "bad_reward": "drop_group"}
    result, before, after = run(topology, tmp_path, Judge(math.nan, "two"), **ways)
    records = [r for r in read_metrics(tmp_path / "metrics.jsonl") if r["kind"] == "tune"]
    assert [record["dropped_groups"] for record in records] == [1.0, 1.0]
    assert all(math.isfinite(record[name]) for record in records for name in ("reward", "loss", "kl", "reward/judge"))
    assert not any(record["skipped"] for record in records)
    assert result.first_reward == records[0]["reward"]
    assert any(not torch.equal(a, b) for a, b in zip(before, after, strict=True))
    samples = read_metrics(tmp_path / "samples" / "metrics.jsonl")
    assert {sample["source"] for sample in samples if sample["dropped"]} == {"two"}
    assert all(sample["reward"] is None and sample["advantage"] == 0.0 for sample in samples if sample["dropped"])


def test_tuning_without_a_group_left_ends_as_a_fault(topology: Topology, tmp_path: Path) -> None:
    everything = Judge(math.nan, "one", "two", "three", "four")
    for _ in range(2):  # a command that only finds what was done says so too
        with pytest.raises(UserError, match="every group of all 2 steps was dropped"):
            run(topology, tmp_path, everything, bad_reward="drop_group")
    records = [r for r in read_metrics(tmp_path / "metrics.jsonl") if r["kind"] == "tune"]
    assert [(r["dropped_groups"], r["reward"], r["loss"]) for r in records] == [(4.0, None, 0.0)] * 2
    assert not (tmp_path / "policy").exists()


def test_a_resumed_run_that_learnt_before_may_drop_all_that_is_left(topology: Topology, tmp_path: Path) -> None:
    class Late(Judge):
        """Sound in the first step alone, whichever process takes it."""

        def __call__(self, candidates: Sequence[Candidate]) -> list[float]:
            first = not (tmp_path / "checkpoints").is_dir()
            return super().__call__(candidates) if first else [math.nan] * len(candidates)

    result, _, _ = run(topology, tmp_path, Late(0.0), bad_reward="drop_group", checkpoint_every=1, keep_checkpoints=2)
    shutil.rmtree(tmp_path / "policy")
    shutil.rmtree(tmp_path / "checkpoints" / "step-00000002")
    assert result.first_reward is not None
    result, _, _ = run(topology, tmp_path, Late(0.0), bad_reward="drop_group", checkpoint_every=1, keep_checkpoints=2)
    assert result.first_reward is None and (tmp_path / "policy").is_dir()


def test_tuning_that_diverges_ends_with_a_line_that_names_the_rate(topology: Topology, tmp_path: Path) -> None:
    optimizer = TOY["CONFIG"].optimizer.model_copy(update={"lr": 1e30}).model_dump()
    with pytest.raises(DivergedError, match=r"^tuning toy diverged .*step \d+.*lower `tune\.toy\.optimizer\.lr`"):
        run(topology, tmp_path, Judge(0.0), optimizer=optimizer, steps=20, skip=SkipConfig(max_in_row=2).model_dump())


def test_tuning_that_ends_before_it_has_skipped_too_many_steps_has_diverged_too(
    topology: Topology, tmp_path: Path
) -> None:
    with pytest.raises(
        DivergedError, match=r"it ends with 3 skipped step\(s\), no step was made before; .*optimizer\.lr`"
    ):
        run(topology, tmp_path, Judge(0.0), kl_beta=1e300, steps=3)
    assert not (tmp_path / "policy").exists()


def test_advantages_are_never_made_of_what_is_no_number() -> None:
    with pytest.raises(AssertionError, match="not finite"):
        group_advantages(torch.tensor([[0.0, math.nan], [0.0, 1.0]]))
