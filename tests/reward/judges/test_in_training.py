"""Judges within a job: an outage drops a group or is waited for, ranks share answers, and a wish to stop is heard."""

import math
import os
import re
import runpy
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from synpro_engine.config import UserError, load_config
from synpro_engine.cycle import load_recipe
from synpro_engine.cycle.recipe import Recipe
from synpro_engine.cycle.steps.judging import check_judges, judge_versions, open_judges
from synpro_engine.dist import ParallelConfig, Stopped, launched, on_first
from synpro_engine.dist.testing import ends, programs, run_ranks
from synpro_engine.reward import Candidate, Composer, LengthReward, RewardConfig
from synpro_engine.rl.config import TuneConfig
from synpro_engine.rl.policy import prepare_policy
from synpro_engine.rl.trainer import tune
from synpro_engine.synth import REPHRASE, Prompter
from synpro_engine.train.metrics import read_metrics

BRIEF = ParallelConfig(timeout_minutes=0.1, silence_minutes=0.1)  # 6 s
TOY = Path(__file__).parents[2] / "rl" / "toy.py"
TEXTS = ["A text of some words.", "Another text of words.", "A text of some words."]


def _rewards(endpoint: str, **settings: Any) -> RewardConfig:
    judge = {"endpoint": endpoint, "model": "judge-1", "api": "chat", "outage": "give_up", "tries": 2, **settings}
    return load_config(RewardConfig, {"rephrase": {"quality": 1.0}, "reformat": {}, "judges": {"quality": judge}})


def tune_toy(
    endpoint: str, directory: Path, parallel: ParallelConfig | None = None, measure_every: int = 0, **settings: Any
) -> None:
    toy = runpy.run_path(str(TOY))
    changes = {"steps": 2, "checkpoint_every": 0, "log_samples": 4, "bad_reward": "drop_group"}
    changes["held_out"] = {"every": measure_every, "slices": 3}
    config = TuneConfig.model_validate(toy["CONFIG"].model_dump() | changes)
    with launched(parallel or ParallelConfig()) as topology:
        policy = toy["build"](topology)
        judges = open_judges(_rewards(endpoint, **settings), directory / "judges", topology)
        tune(
            config, policy=policy, reference_policy=prepare_policy(policy, config),
            prompter=Prompter(toy["OPERATION"], toy["Letters"](), toy["PROMPT"]), slices=toy["SLICES"],
            scorer=Composer(judges, {"toy": {"quality": 1.0}}), reward_weights={"quality": 1.0},
            held_out=toy["SLICES"], directory=directory, seed=1,
        )  # fmt: skip


def test_what_is_held_out_is_judged_and_its_calls_are_counted_by_themselves(server: Any, tmp_path: Path) -> None:
    server.answer = lambda handler, body: handler.write("4" if "e" in body["messages"][0]["content"][-200:] else "2")
    tune_toy(server.endpoint, tmp_path, measure_every=1)
    records = read_metrics(tmp_path / "metrics.jsonl")
    assert [record["kind"] for record in records] == ["held_out", "tune", "held_out", "tune", "held_out"]
    asked = [record["judge/quality/calls"] + record["judge/quality/kept"] for record in records]
    assert min(asked) > 0 and records[0]["judge/quality/calls"] > 0
    assert sum(record["judge/quality/calls"] for record in records) == len(server.calls)


def test_an_outage_for_one_source_drops_its_group_and_is_counted(server: Any, tmp_path: Path) -> None:
    def answer(handler: Any, body: Any) -> None:
        asked = body["messages"][0]["content"]
        handler.send(500, b"") if "\ntwo\n" in asked else handler.write("5" if "e" in asked[-200:] else "2")

    server.answer = answer
    tune_toy(server.endpoint, tmp_path)
    records = [r for r in read_metrics(tmp_path / "metrics.jsonl") if r["kind"] == "tune"]
    assert [record["dropped_groups"] for record in records] == [1.0, 1.0]
    assert all(math.isfinite(record[name]) for record in records for name in ("reward", "loss", "reward/quality"))
    assert all(record["judge/quality/missing"] >= 1 for record in records)
    assert records[0]["judge/quality/faults"] == 2 and records[0]["judge/quality/calls"] > 4
    samples = read_metrics(tmp_path / "samples" / "metrics.jsonl")
    assert {sample["source"] for sample in samples if sample["dropped"]} == {"two"}


def _asks(endpoint: str, directory: Path) -> list[Any]:
    with launched(BRIEF.model_copy(update={"tp": 2})) as topology:
        [judge] = open_judges(_rewards(endpoint, outage="wait"), directory, topology)
        candidates = [
            Candidate(operation="rephrase", source=text, raw="", parsed=REPHRASE.parse(f"{REPHRASE.heading}\n{text}"))
            for text in TEXTS
        ]
        values = [judge(candidates), judge(candidates[:1])]
        faults = []
        for fault in (UserError("mine"), Stopped("wish")):

            def work(fault: Exception = fault) -> list[float]:
                raise fault

            with pytest.raises((UserError, Stopped)) as caught:
                on_first(topology.tp, topology, work)
            faults.append(str(caught.value))
        nothing = on_first(topology.tp, topology, lambda: [math.nan])[0]
        return [values, judge.client.take_counts()["calls"], faults, topology.rank == 0 or nothing is None]


def test_tensor_parallel_ranks_ask_once_and_wait_longer_than_a_collective_may(server: Any, tmp_path: Path) -> None:
    asked: list[float] = []

    def answer(handler: Any, body: Any) -> None:
        asked.append(time.monotonic())
        handler.write("3") if asked[-1] - asked[0] > 8 else handler.send(503, b"", retry_after="1")

    server.answer = answer
    one, two = run_ranks(_asks, 2, endpoint=server.endpoint, directory=tmp_path)
    assert one[0] == two[0] == [[0.0] * 3, [0.0]]
    assert one[1] > 2 and two[1] == 0, "the second rank asks nothing"
    assert one[2] == two[2] == ["mine", "wish"] and one[3] and two[3]
    answered = {body["messages"][0]["content"] for _, body, _, _ in server.calls}
    assert len(answered) == len(set(TEXTS))


def test_a_job_that_waits_for_a_judge_can_be_stopped(server: Any, tmp_path: Path) -> None:
    server.answer = lambda handler, body: handler.send(503, b"")
    settings = {"endpoint": server.endpoint, "directory": tmp_path / "run", "outage": "wait"}
    with programs(tune_toy, 2, tmp_path / "log", **settings) as processes:
        while len(server.calls) < 20:
            time.sleep(0.05)
        os.kill(processes[1].pid, signal.SIGTERM)
        found = ends(processes, tmp_path / "log", timeout_s=60)
    assert [end.code for end in found] == [75, 75], found[0].stderr
    assert "`reward.judges.quality.endpoint`" in found[0].stderr and "did not answer" in found[0].stderr


def test_a_run_is_refused_before_it_begins_when_a_judge_is_not_there(server: Any, tmp_path: Path) -> None:
    def recipe(endpoint: str, *more: str) -> Recipe:
        judge = f"reward.judges.quality={{endpoint: '{endpoint}', model: judge-1}}"
        return load_recipe("smoke", [judge, "tune={rephrase: {bad_reward: drop_group}}", *more])

    def finish(stage: str) -> None:
        (tmp_path / stage).mkdir(parents=True)
        (tmp_path / stage / "manifest.json").touch()

    gone = "http://127.0.0.1:9/v1"
    told = rf"`reward.judges.quality.endpoint`: {gone} does not answer"
    unmeasured = recipe(gone, "generate.rewards=[influence]")
    with launched(ParallelConfig()) as topology:
        for asking in (recipe(gone), unmeasured):
            with pytest.raises(UserError, match=told):
                check_judges(asking, tmp_path, topology)
        finish("round-1/tune-rephrase")
        with pytest.raises(UserError, match=told):
            check_judges(recipe(gone), tmp_path, topology)
        check_judges(unmeasured, tmp_path, topology)  # generation would not ask it
        finish("round-1/generate-rephrase")
        finish("round-1/generate-reformat")
        check_judges(recipe(gone), tmp_path, topology)  # all is done that would
        check_judges(recipe(server.endpoint), tmp_path / "new", topology)


def test_a_tuning_that_one_lost_answer_would_end_is_refused() -> None:
    judge = ["reward.judges.quality={endpoint: 'http://127.0.0.1:9/v1', model: m}"]
    with pytest.raises(UserError, match=r"tune.rephrase.bad_reward: must be drop_group, for reward.judges.quality"):
        load_recipe("smoke", judge)
    dropping = [f"tune.{operation}.bad_reward=drop_group" for operation in ("rephrase", "reformat")]
    recipe = load_recipe("smoke", judge + dropping)
    assert list(recipe.reward.remote) == ["quality"] and not recipe.reward.measures("quality")
    recorded = recipe.reward.recorded()["judges"]["quality"]
    assert recorded["model"] == "m" and "endpoint" not in recorded and "concurrency" not in recorded


def test_records_name_the_model_and_the_question_or_the_encoder_that_gave_a_reward(tmp_path: Path) -> None:
    def versions_of(model: str, prompt: str | None, encoder: str) -> dict[str, str]:
        (tmp_path / "encoder").mkdir(exist_ok=True)
        (tmp_path / "encoder" / "config.json").write_text(encoder)
        asked = _rewards("http://127.0.0.1:9/v1", model=model, prompt=prompt)
        changes = {"similarity": {"encoder": str(tmp_path / "encoder"), "layer": 2}}
        reward = load_config(RewardConfig, {
            "rephrase": {"quality": 1.0, "length": 1.0, "similarity": 1.0}, "reformat": {},
            "judges": asked.judges.model_dump() | changes,
        })  # fmt: skip
        judges = open_judges(reward, tmp_path / "judges", topology)
        return judge_versions(reward, Composer([*judges, LengthReward()], {}))

    with launched(ParallelConfig()) as topology:
        first = versions_of("judge-1", None, "{}")
        assert re.fullmatch(r"judge-1 by chat, question [0-9a-f]{16}", first["quality"])
        assert re.fullmatch(r"encoder [0-9a-f]{16}, layer 2", first["similarity"])
        assert first["length"].startswith("synpro_engine ")
        assert versions_of("judge-2", None, "{}")["quality"] == first["quality"].replace("judge-1", "judge-2")
        assert versions_of("judge-1", "Is this good? {text}", "{}")["quality"] != first["quality"]
        assert versions_of("judge-1", None, "[]")["similarity"] != first["similarity"]
