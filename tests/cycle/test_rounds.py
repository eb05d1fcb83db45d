"""Rounds that end by what they gain: the plan grows as stages end, decides once, and goes on from a kill anywhere.

Stages are run by the real cycle and decide for real; what trains writes the results that a test gives it.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

import synpro_engine.cycle.cycle as module
from synpro_engine.config import UserError, read_manifest
from synpro_engine.cycle import Cycle, load_recipe
from synpro_engine.cycle.forecast import forecast
from synpro_engine.cycle.stages import Stage, run_stage, stage_times
from synpro_engine.cycle.status import run_status
from synpro_engine.dist import ParallelConfig, Topology, launched

_FALLS = {"pretrain": 5.0, "round-1/continue": 4.8, "round-2/continue": 4.704, "round-3/continue": 4.70}
"""Reference losses: rounds gain 4 %, 2 % and 0.085 %."""
_GROWING = ("rounds=5", "cycle.min_gain=0.01", "continued.plateau={}", "continued.steps=40")
_STEPS = {"round-1/continue": 20, "round-2/continue": 30}
"""At which training ends before its last step."""


def _result(cycle: Cycle, stage: str) -> dict[str, object]:
    training = cycle.training(stage)
    before = {"step": 0} if training.start is None else json.loads((training.start / "result.json").read_text())
    steps = min(training.settings.pretrain.max_steps, _STEPS.get(stage, 10**9))
    losses = {"reference": _FALLS.get(stage, 4.5)}
    told = {"step": before["step"] + steps, "tokens": 512 * steps, "losses": losses, "plateau": True, "reason": "told"}
    return told | {"samples": {"organic": 8}}


@pytest.fixture
def topology() -> Iterator[Topology]:
    """Of one process."""
    with launched(ParallelConfig()) as one:
        yield one


@pytest.fixture
def bring_up(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, topology: Topology) -> Callable[..., list[str]]:
    """Runs a recipe in a directory; the stages that were worked on. until, redo, only: as of `Cycle.run`.

    killed: the number of stages behind which the run ends, if it has as many.
    """

    def bring(*overrides: str, killed: int | None = None, **how: object) -> list[str]:
        worked: list[str] = []
        cycle = Cycle(load_recipe("smoke", overrides), tmp_path / "run", topology)

        def told(into: Path, *, topology: Topology, name: str) -> None:
            if name in cycle.training_stages:
                (into / "result.json").write_text(json.dumps(_result(cycle, name)))

        def run(directory: Path, stage: Stage, here: Topology, *, redo: bool) -> None:
            def work(into: Path, *, topology: Topology) -> None:
                if killed is not None and len(worked) == killed:
                    raise KeyboardInterrupt
                worked.append(stage.name)
                if stage.name.endswith("/decide"):
                    stage.work(into, topology=topology)
                else:
                    told(into, topology=topology, name=stage.name)

            run_stage(directory, replace(stage, work=work), here, redo=redo)

        with monkeypatch.context() as patched:
            patched.setattr(module, "run_stage", run)
            patched.setattr(Cycle, "write_report", lambda self: None)
            cycle.run(**how)
        return worked

    return bring


def _decision(run: Path, number: int) -> dict[str, object]:
    return json.loads((run / f"round-{number}" / "decide" / "decision.json").read_text())


def test_rounds_follow_each_other_until_one_gains_too_little(
    bring_up: Callable[..., list[str]], tmp_path: Path
) -> None:
    worked, run = bring_up(*_GROWING), tmp_path / "run"
    assert [name for name in worked if name.endswith("/continue")] == [f"round-{n}/continue" for n in (1, 2, 3)]
    assert worked[-2:] == ["repeat", "evaluate"] and not (run / "round-4").exists()
    assert [_decision(run, n)["go_on"] for n in (1, 2, 3)] == [True, True, False]
    assert _decision(run, 2)["gain"] == pytest.approx(0.02)
    assert _decision(run, 3)["reason"] == (
        "the reference loss fell by 0.085% in this round (`cycle.min_gain` is 1.000%)"
    )
    # As many steps as the rounds took, and not as many as they might have taken.
    assert read_manifest(run / "repeat").config["pretrain"]["max_steps"] == 20 + 30 + 40
    assert {"round-3/continue", "repeat", "round-3/probe"} <= read_manifest(run / "evaluate").parents.keys()
    assert read_manifest(run / "round-2" / "continue").config["pretrain"]["plateau"]["window"] == 3
    assert bring_up(*_GROWING) == []


@pytest.mark.parametrize(
    ("limit", "rounds", "reason"),
    [
        ("cycle.max_tokens=50000", 2, "56,320 tokens are trained on"),
        ("cycle.max_hours=100", 3, ""),
        ("cycle.min_gain=0.0", 3, ""),
    ],
)
def test_budgets_end_the_rounds_and_the_most_of_them_is_the_recipes(
    bring_up: Callable[..., list[str]], tmp_path: Path, limit: str, rounds: int, reason: str
) -> None:
    # Pretraining takes 60 steps of 512 tokens, the first rounds 20 and 30.
    worked = bring_up("rounds=3", "continued.steps=40", limit)
    assert sum(name.endswith("/continue") for name in worked) == rounds
    if reason:
        assert str(_decision(tmp_path / "run", rounds)["reason"]).startswith(reason)
    assert not (tmp_path / "run" / "round-3" / "decide").exists()  # there is nothing to decide behind the last


def test_a_run_killed_behind_any_stage_ends_as_one_that_never_was(
    bring_up: Callable[..., list[str]], tmp_path: Path
) -> None:
    kills = 0
    while True:
        try:
            bring_up(*_GROWING, killed=1)
        except KeyboardInterrupt:
            kills += 1
        else:
            break
    assert kills + 1 == len(stage_times(tmp_path / "run")) == 3 + 3 * 8 + 2
    assert _decision(tmp_path / "run", 3)["go_on"] is False and bring_up(*_GROWING) == []


def test_a_decision_stands_whatever_the_clock_says_later(bring_up: Callable[..., list[str]], tmp_path: Path) -> None:
    limit = ("rounds=3", "cycle.max_hours=1")
    with pytest.raises(KeyboardInterrupt):
        bring_up(*limit, killed=12)  # within the second round
    times = tmp_path / "run" / "stages.jsonl"
    lines = [json.loads(line) | {"seconds": 3600.0} for line in times.read_text().splitlines()]
    times.write_text("".join(json.dumps(line) + "\n" for line in lines))
    bring_up(*limit)
    assert [_decision(tmp_path / "run", n)["go_on"] for n in (1, 2)] == [True, False]


def test_hours_are_those_of_the_stages_that_are_there_and_that_the_arm_is_made_from(
    bring_up: Callable[..., list[str]], tmp_path: Path
) -> None:
    arms = "arms={one: {text: prompted}, two: {text: tuned}}"
    limit = ("rounds=2", "cycle.max_hours=1000", arms)
    bring_up(*limit, only=["one"])
    times, own = tmp_path / "run" / "stages.jsonl", "arms/two/"
    gone = {"stage": "round-9/continue", "seconds": 3.6e6, "ended": 0.0}
    lines = [json.loads(line) | {"seconds": 3.6e4} for line in times.read_text().splitlines()]
    times.write_text("".join(json.dumps(line) + "\n" for line in [*lines, gone]))
    bring_up(*limit, only=["two"])
    hours = json.loads((tmp_path / "run" / own / "round-1" / "decide" / "decision.json").read_text())["hours"]
    # Text, generator, pretraining and the first probe, which both arms are made from.
    assert hours == pytest.approx(4 * 10, abs=0.1)


def test_a_changed_limit_decides_anew_and_keeps_the_rounds_that_are_there(
    bring_up: Callable[..., list[str]], tmp_path: Path
) -> None:
    bring_up(*_GROWING)
    before = read_manifest(tmp_path / "run" / "round-3" / "continue").content_hash
    looser = [*_GROWING[:1], "cycle.min_gain=0.0001", *_GROWING[2:]]
    with pytest.raises(UserError, match=r"`cycle.min_gain` is 0.01 there, 0.0001 here: round-1/decide and .*--redo"):
        bring_up(*looser)
    worked = bring_up(*looser, redo=True)
    assert worked[:3] == ["round-1/decide", "round-2/decide", "round-3/decide"] and "round-4/continue" in worked
    assert read_manifest(tmp_path / "run" / "round-3" / "continue").content_hash == before
    stricter = [*_GROWING[:1], "cycle.min_gain=0.03", *_GROWING[2:]]
    bring_up(*stricter, redo=True)
    assert {"round-2/continue", "round-2/probe"} <= read_manifest(tmp_path / "run" / "evaluate").parents.keys()


def test_a_command_brings_up_its_stages_of_rounds_that_nobody_knew_of(bring_up: Callable[..., list[str]]) -> None:
    worked = bring_up(*_GROWING, until="generate")
    assert "round-3/shards" in worked and "repeat" not in worked
    assert worked[-1] == "round-3/decide"
    assert bring_up(*_GROWING, until="pretrain") == []


def test_an_arm_that_goes_by_the_others_waits_for_them(bring_up: Callable[..., list[str]], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--only repetition: takes as many steps as the longest of the arms in rounds"):
        bring_up(*_GROWING, only=["repetition"])
    assert "round-3/decide" in bring_up(*_GROWING, only=["synthetic"])
    assert bring_up(*_GROWING, only=["repetition"]) == ["repeat"]
    assert bring_up(*_GROWING) == ["evaluate"]


def test_an_arm_that_was_asked_for_and_not_begun_is_told(
    bring_up: Callable[..., list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    arms = "arms={one: {text: prompted}, two: {text: tuned}, again: {text: organic}}"
    told = "--only again: not begun, for it takes as many steps as the longest of the arms in rounds"
    bring_up(*_GROWING, arms, only=["one", "again"])
    assert told in capsys.readouterr().err
    bring_up(*_GROWING, arms, only=["two", "again"])
    assert "--only again" not in capsys.readouterr().err


def test_a_round_that_is_in_no_plan_any_more_is_not_the_newest(
    bring_up: Callable[..., list[str]], tmp_path: Path, topology: Topology
) -> None:
    bring_up(*_GROWING)
    stricter = [_GROWING[0], "cycle.min_gain=0.03", *_GROWING[2:]]
    bring_up(*stricter, redo=True)
    assert (tmp_path / "run" / "round-3" / "probe").exists()
    cycle = Cycle(load_recipe("smoke", stricter), tmp_path / "run", topology)
    assert cycle.probe_pair == ("round-1/continue", "round-2/probe") and cycle.newest_theta == "round-1/continue"


def test_what_may_follow_is_forecast_and_what_is_known_is_told(
    bring_up: Callable[..., list[str]], tmp_path: Path
) -> None:
    recipe = load_recipe("smoke", _GROWING)
    stages = [cost.stage for cost in forecast(recipe, 1).costs]
    assert stages.count("evaluate") == 1 and "round-5/continue" in stages and "round-5/decide" not in stages
    steps = {cost.stage: cost.tokens for cost in forecast(recipe, 1).costs}
    assert steps["repeat"] == 5 * 40 * 8 * 64
    bring_up(*_GROWING, until="pretrain")
    found = run_status(recipe, tmp_path / "run")
    assert not found.whole and not found.is_done and found.stages[-1].name == "round-1/decide"
    bring_up(*_GROWING)
    assert run_status(recipe, tmp_path / "run").is_done


def test_seeds_take_as_many_rounds_as_the_first_and_begin_each_with_their_own_weights(
    bring_up: Callable[..., list[str]], tmp_path: Path
) -> None:
    worked = bring_up(*_GROWING, "seeds=[7, 8]")
    assert sum(name.endswith("/continue-seed-8") for name in worked) == 3
    parents = read_manifest(tmp_path / "run" / "round-3" / "continue-seed-8").parents
    assert {"round-2/continue-seed-8", "round-3/shards"} <= parents.keys()
