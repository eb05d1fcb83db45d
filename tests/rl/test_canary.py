"""Judges that are looked at while they train: training is as without, kills and layouts change nothing."""

import functools
import runpy
from pathlib import Path
from typing import Any

import pytest
import torch

from synpro_engine.config import UserError
from synpro_engine.cycle import load_recipe
from synpro_engine.dist import ParallelConfig, Topology, launched
from synpro_engine.dist.testing import run_ranks
from synpro_engine.rl.canary import JudgeFell
from synpro_engine.rl.config import CanaryConfig, TuneConfig
from synpro_engine.train.metrics import read_metrics


@functools.cache
def toy() -> dict[str, Any]:
    return runpy.run_path(str(Path(__file__).with_name("toy.py")))


def config(steps: int = 5, **canary: Any) -> TuneConfig:
    settings = {"steps": steps, "checkpoint_every": 2, "judge_canary": {"every": 2, "texts": 6} | canary}
    return TuneConfig.model_validate(toy()["CONFIG"].model_dump() | settings)


def records(directory: Path, kind: str) -> list[dict[str, Any]]:
    """Without their clocks."""
    return [
        {name: value for name, value in record.items() if name != "time" and not name.startswith("seconds")}
        for record in read_metrics(directory / "metrics.jsonl")
        if record["kind"] == kind
    ]


def test_training_is_to_the_last_bit_what_it_is_without_a_canary(topology: Topology, tmp_path: Path) -> None:
    _, watched = toy()["run"](topology, tmp_path / "watched", config())
    _, alone = toy()["run"](topology, tmp_path / "alone", config(every=0))
    assert records(tmp_path / "watched", "tune") == records(tmp_path / "alone", "tune")
    for (name, a), (_, b) in zip(watched.named_parameters(), alone.named_parameters(), strict=True):
        assert torch.equal(a, b), name
    looks = records(tmp_path / "watched", "canary")
    assert [look["step"] for look in looks] == [1, 3, 5] and records(tmp_path / "alone", "canary") == []
    for look in looks:
        assert any(name.startswith("kinds/share_e/") for name in look)
        assert look["pairs/share_a"] >= 6 and 0.0 <= look["auc/share_a"] <= 1.0


def test_a_killed_run_sees_what_it_would_have_seen(topology: Topology, tmp_path: Path) -> None:
    toy()["run"](topology, tmp_path / "whole", config(7))
    with pytest.raises(KeyboardInterrupt):
        # Each look asks the reward once more than the step does.
        toy()["run"](topology, tmp_path / "killed", config(7), kill_after=8)
    assert len(records(tmp_path / "killed", "canary")) in (2, 3)
    toy()["run"](topology, tmp_path / "killed", config(7))
    assert records(tmp_path / "killed", "canary") == records(tmp_path / "whole", "canary")
    assert [look["step"] for look in records(tmp_path / "whole", "canary")] == [1, 3, 5, 7]


def _watched(directory: Path, tp: int) -> None:
    helpers = runpy.run_path(str(Path(__file__).with_name("toy.py")))
    settings = {"steps": 1, "judge_canary": {"every": 1, "texts": 9}}
    with launched(ParallelConfig(tp=tp)) as topology:
        helpers["run"](topology, directory, TuneConfig.model_validate(helpers["CONFIG"].model_dump() | settings))


@pytest.mark.slow
def test_ranks_share_a_look_and_find_what_one_process_finds(tmp_path: Path) -> None:
    run_ranks(_watched, 1, directory=tmp_path / "alone", tp=1)
    for name, tp in (("dp2", 1), ("tp2", 2)):
        run_ranks(_watched, 2, directory=tmp_path / name, tp=tp)
        assert records(tmp_path / name, "canary") == records(tmp_path / "alone", "canary"), name


def test_a_judge_that_falls_is_told_or_ends_tuning_at_a_step_that_can_be_gone_on_from(
    topology: Topology, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    least = {"share_e": 1.0}
    toy()["run"](topology, tmp_path / "warned", config(4, least=least))
    told = [line for line in capsys.readouterr().err.splitlines() if "judge `share_e`" in line]
    assert len(told) == 3 and "tuning toy: at step 1 the judge `share_e` tells 0." in told[0]
    assert "(`tune.toy.judge_canary.least.share_e` is 1)" in told[0]
    stopping = config(4, every=3, least=least, below="stop")
    for _ in range(2):  # asked again, it stops again
        with pytest.raises(JudgeFell, match=r"at step 1 the judge `share_e`.*`below: warn` goes on") as fell:
            toy()["run"](topology, tmp_path / "stopped", stopping)
        assert isinstance(fell.value, UserError) and "\n" not in str(fell.value)
    assert records(tmp_path / "stopped", "tune") == [], "nothing was learnt from it"


def test_tuning_goes_on_from_the_step_at_which_a_judge_fell(topology: Topology, tmp_path: Path) -> None:
    toy()["run"](topology, tmp_path / "whole", config(8, every=5))
    with pytest.raises(KeyboardInterrupt):
        toy()["run"](topology, tmp_path / "run", config(8, every=5), kill_after=6)
    with pytest.raises(JudgeFell, match="at step 6 the judge `share_e`"):
        toy()["run"](topology, tmp_path / "run", config(8, every=5, least={"share_e": 1.0}, below="stop"))
    assert [step["step"] for step in records(tmp_path / "run", "tune")] == [1, 2, 3, 4, 5]
    assert (tmp_path / "run" / "checkpoints" / "step-00000005").exists(), list((tmp_path / "run").rglob("step*"))
    toy()["run"](topology, tmp_path / "run", config(8, every=5, least={"share_e": 1.0}))
    assert records(tmp_path / "run", "tune") == records(tmp_path / "whole", "tune")
    assert records(tmp_path / "run", "canary") == records(tmp_path / "whole", "canary")


def test_settings_that_no_judge_can_fall_by_are_refused_by_their_key() -> None:
    with pytest.raises(ValueError, match="least: nothing is looked at without `every`"):
        CanaryConfig(least={"quality": 0.7})
    least = "tune.rephrase.judge_canary={every: 5, least: {qualty: 0.7}}"
    with pytest.raises(UserError, match=r"judge_canary.least: no judge `qualty` .*did you mean `quality`"):
        load_recipe("smoke", [least])
    none = ["reward.rephrase={length: 1.0, format: 1.0}", "tune.rephrase.judge_canary={every: 5}"]
    with pytest.raises(UserError, match=r"judge_canary.every: no reward of the operation is a judge's"):
        load_recipe("smoke", none)
    out = ["tune.rephrase.without=[quality]", "tune.rephrase.judge_canary={every: 5, least: {quality: 0.7}}"]
    with pytest.raises(UserError, match=r"judge_canary.least: no judge `quality`.*tune.rephrase.without.*`quality`"):
        load_recipe("smoke", out)
    recipe = load_recipe("smoke", ["tune.rephrase.judge_canary={every: 5, least: {quality: 0.7}}"])
    assert recipe.tune["rephrase"].recorded() == load_recipe("smoke").tune["rephrase"].recorded(), "no stage is redone"
