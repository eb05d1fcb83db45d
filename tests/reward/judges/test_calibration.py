"""A judge's calibration: the map rises, what it was fitted to it mends, and it is used for that very judge alone."""

import json
import math
import random
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from synpro_engine.cli.main import main
from synpro_engine.config import UserError, load_config
from synpro_engine.cycle import load_recipe
from synpro_engine.cycle.plan import Plan
from synpro_engine.dist import ParallelConfig, launched
from synpro_engine.reward import RewardConfig
from synpro_engine.reward.calibrating import Labelled, fit_calibration
from synpro_engine.reward.judges import (
    Calibration,
    Client,
    JudgeConfig,
    Judgement,
    built_in,
    check_judges,
    load_calibration,
    log_odds,
    open_judges,
    opening,
)
from synpro_engine.reward.judges.calibration import place_of
from synpro_engine.reward.judges.client import Inquiry
from synpro_engine.reward.measures import auc, calibration_error
from tests.cli.refusals import refused

FITTED = {"judge": "faithfulness", "model": "judge-1", "api": "systemone", "question": "0" * 16}


@pytest.fixture(autouse=True)
def forget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opening, "_TAKEN", {})


def said_by_a_judge_too_sure(seed: int, count: int = 4000) -> Labelled:
    """Truths drawn by probabilities that the judge knows, and says three times as surely and too kindly."""
    chance = np.random.default_rng(seed)
    p_N = chance.beta(1.5, 1.5, count)
    said_N = np.array([place_of(3.0 * log_odds(p) + 1.5) for p in p_N])
    labels_N = (chance.random(count) < p_N).astype(float)
    return Labelled(said_N, labels_N, [f"source {n // 4}" for n in range(count)])


def _of(labelled: Labelled, places_N: Any) -> tuple[float, float]:
    """(expected calibration error, AUC)."""
    true = labelled.labels_N == 1
    error = calibration_error(places_N, labelled.labels_N, np.ones(len(places_N)))
    return error, auc(places_N[true], places_N[~true])


def test_a_miscalibrated_judge_is_mended_on_pairs_it_was_not_fitted_to_and_ranks_as_before() -> None:
    fitted, other = said_by_a_judge_too_sure(0), said_by_a_judge_too_sure(1)
    calibration = fit_calibration({"planted": fitted}, **FITTED, option="--calibrate")
    assert calibration.temperature == pytest.approx(3.0, rel=0.1) and calibration.offset == pytest.approx(-0.5, abs=0.1)
    before, ranked = _of(other, other.places_N)
    after, ranked_after = _of(other, np.array([calibration(p, (0.0, 1.0)) for p in other.places_N]))
    assert before > 0.15 and after < 0.03 and ranked_after == ranked
    assert calibration.measured["planted"]["before"] > 0.15 and calibration.measured["planted"]["after"] < 0.03
    assert calibration.pairs == {"planted": 4000}


def test_the_map_rises_onto_the_scale_and_passes_over_what_is_missing() -> None:
    for temperature, offset in ((0.2, 3.0), (5.0, -2.0)):
        calibration = Calibration(**FITTED, temperature=temperature, offset=offset)
        for scale in ((0.0, 1.0), (1.0, 5.0)):
            low, high = scale
            mapped = [calibration(low + (high - low) * n / 200, scale) for n in range(201)]
            assert all(a < b or a == b == high for a, b in pairwise(mapped))
            assert low <= mapped[0] and mapped[-1] <= high and math.isnan(calibration(math.nan, scale))
    same = Calibration(**FITTED, temperature=1.0, offset=0.0)
    assert [same(p, (0.0, 1.0)) for p in (0.1, 0.5, 0.9)] == pytest.approx([0.1, 0.5, 0.9])


def test_a_judge_without_a_fault_or_in_two_words_is_fitted_by_numbers_that_end() -> None:
    labels, sources = np.array([1.0, 0.0] * 20), [str(n) for n in range(40)]
    perfect = fit_calibration({"a": Labelled(labels, labels, sources)}, **FITTED, option="--calibrate")
    assert math.isfinite(perfect.temperature) and 0.9 < perfect(1.0, (0.0, 1.0)) < 1.0 - 1e-3
    # It says yes or no alone, and is right about three in four.
    wrong = labels.copy()
    wrong[:10] = 1 - wrong[:10]
    coarse = fit_calibration({"a": Labelled(wrong, labels, sources)}, **FITTED, option="--calibrate")
    assert coarse(1.0, (0.0, 1.0)) == pytest.approx(0.75, abs=0.04)


def test_what_no_rising_map_mends_and_what_is_too_little_is_refused() -> None:
    given = said_by_a_judge_too_sure(0, 400)
    turned = Labelled(1.0 - given.places_N, given.labels_N, given.sources)
    with pytest.raises(UserError, match="--calibrate: the judge `faithfulness` rates false pairs no lower than true"):
        fit_calibration({"planted": turned}, **FITTED, option="--calibrate")
    few, one_sided = given.only(np.arange(400) < 12), given.only(given.labels_N == 1)
    with pytest.raises(UserError, match=r"--calibrate: .* answered \d+ true and \d+ false pairs .* --texts or --pairs"):
        fit_calibration({"planted": few, "other": one_sided}, **FITTED, option="--calibrate")


def asked_of(config: JudgeConfig, **changes: Any) -> Calibration:
    fitted = FITTED | {"question": Inquiry("faithfulness", config).version} | changes
    return Calibration(**fitted, temperature=2.0, offset=0.5)


def test_answers_are_kept_as_they_came_and_calibrated_when_they_are_read(server: Any, tmp_path: Path) -> None:
    server.answer = lambda handler, body: handler.decide(body, lambda asked, names: [0.9, 0.06, 0.04])
    config, file = server.judge(api="systemone"), tmp_path / "calibration.json"
    calibration = asked_of(config)
    calibration.write(file)

    def judge(config: JudgeConfig) -> Client:
        [opened] = open_judges({"faithfulness": config}, {"faithfulness": "systemone"}, cache=tmp_path / "judges")
        return opened.client

    asked = [Judgement("faithfulness", "The source.", "An answer.", "- Topic: a Content: b")]
    raw, calibrated = judge(config), judge(config.model_copy(update={"calibration": str(file)}))
    assert calibrated.values(asked) == [calibration(0.9, (0.0, 1.0))] != raw.values(asked) == [0.9]
    assert len(server.calls) == 1, "the same answer serves both"
    [kept] = (tmp_path / "judges" / "faithfulness").glob("*.jsonl")
    about, answer = map(json.loads, kept.read_text().splitlines())
    assert answer["value"] == 0.9 and about == {"about": calibrated.version("faithfulness")}
    assert calibrated.version("faithfulness") == f"{raw.version('faithfulness')}, calibration {calibration.version}"
    assert re.fullmatch(r"[0-9a-f]{16}", calibration.version)
    assert calibration.model_copy(update={"offset": 0.6}).version != calibration.version
    assert calibration.model_copy(update={"measured": {"a": {"before": 1.0}}}).version == calibration.version


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"model": "judge-2"}, "was fitted to the model `judge-2`, and here it is `judge-1`"),
        ({"judge": "structure"}, "was fitted to the judge `structure`, and here it is `faithfulness`"),
        ({"question": "f" * 16}, "was fitted to the question `ffffffffffffffff`"),
        ({"api": "chat"}, "was fitted to the api `chat`, and here it is `systemone`"),
    ],
)
def test_a_calibration_of_another_judge_is_refused_by_its_key(
    server: Any, tmp_path: Path, changes: dict[str, str], told: str
) -> None:
    server.answer = lambda handler, body: handler.decide(body, lambda asked, names: [0.9, 0.06, 0.04])
    file, config = tmp_path / "calibration.json", server.judge(api="auto")
    asked_of(config, **changes).write(file)
    judges = {"faithfulness": config.model_copy(update={"calibration": str(file)})}
    with pytest.raises(UserError) as checked:
        check_judges(judges)
    with pytest.raises(UserError) as opened:
        open_judges(judges, {"faithfulness": "systemone"})
    for error in (checked, opened) if "api" not in changes else (opened,):
        line = str(error.value)
        assert line.startswith(f"`reward.judges.faithfulness.calibration`: {file}: ") and told in line
        assert "\n" not in line
    assert bool(server.calls) == ("api" in changes), "what a file says is told before a server is asked"


SPOILT = {
    "damaged": lambda text: text.replace('"temperature": 2.0', '"temperature": 3.0'),
    "is no calibration": lambda text: "[1, 2]",
    "is no calibration that": lambda text: text[: len(text) // 2],
    "cannot be read": None,
}


@pytest.mark.parametrize("told", SPOILT)
def test_a_bad_file_is_told_in_one_line_before_any_server_is_asked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], told: str
) -> None:
    file, spoil = tmp_path / "calibration.json", SPOILT[told]
    config = load_config(JudgeConfig, {"endpoint": "http://127.0.0.1:9/v1", "model": "judge-1", "api": "systemone"})
    asked_of(config).write(file)
    assert load_calibration(file, "key") == asked_of(config)
    file.unlink() if spoil is None else file.write_text(spoil(file.read_text()))
    judge = f"reward.judges.faithfulness={{endpoint: '{config.endpoint}', model: judge-1, calibration: {file}}}"
    line = refused(capsys, "judge-check", "smoke", judge, "tune.reformat.bad_reward=drop_group")
    assert f"`reward.judges.faithfulness.calibration`: {file}" in line and told in line


def test_another_calibration_makes_the_stages_that_ask_the_judge_others_and_its_place_does_not(tmp_path: Path) -> None:
    def configs(calibrations: dict[str, Path]) -> dict[str, str]:
        own = "question: {type: truth, ask: 'Is it clear?', source: hidden}"
        given = {"faithfulness": "", "clear": f", {own}"}
        judges = [
            f"reward.judges.{name}={{endpoint: 'http://127.0.0.1:9/v1', model: m, calibration: {file}{given[name]}}}"
            for name, file in calibrations.items()
        ]
        drop = [f"tune.{operation}.bad_reward=drop_group" for operation in ("rephrase", "reformat")]
        recipe = load_recipe("smoke", [*judges, *drop, "reward.reformat.faithfulness=1.0"])
        with launched(ParallelConfig()) as topology:
            return {stage.name: str(stage.config) for stage in Plan(recipe, tmp_path / "run", topology).stages()}

    files = {name: tmp_path / f"{name}.json" for name in ("faithfulness", "clear")}
    for file in files.values():
        file.write_text("one")
    before = configs(files)
    moved = {name: file.rename(tmp_path / f"moved-{name}.json") for name, file in files.items()}
    assert configs(moved) == before
    moved["clear"].write_text("two")
    changed = {name for name, config in configs(moved).items() if config != before[name]}
    assert changed == {"round-1/generate-rephrase", "round-1/generate-reformat"}, "nothing weighs it, so no tuning"
    moved["faithfulness"].write_text("two")
    changed = {name for name, config in configs(moved).items() if config != before[name]}
    assert changed == {f"round-1/{stage}" for stage in ("tune-reformat", "generate-reformat", "generate-rephrase")}


def too_sure(handler: Any, body: Any) -> None:
    """A judge that goes by the words that source and entry share, and says so as if there were no doubt."""

    def choose(instructions: str, names: list[str]) -> list[float]:
        entry = set(re.findall(r"[a-z]{4,}", instructions.rpartition("<entry>")[2].casefold()))
        shared = len(entry & set(re.findall(r"[a-z]{4,}", body["state"].casefold()))) / max(1, len(entry))
        p = place_of(24.0 * (shared - 0.4) + random.Random(instructions).gauss(0, 2.0))
        return [p, (1 - p) / 2, (1 - p) / 2]

    handler.decide(body, choose, input_tokens=10)


def test_judge_check_writes_a_map_that_lowers_its_own_error_and_leaves_auc(
    server: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.answer = too_sure
    file = tmp_path / "calibration.json"
    judge = f"reward.judges.faithfulness={{endpoint: '{server.endpoint}', model: judge-1, api: systemone}}"
    asked = ["judge-check", "smoke", judge, "tune.reformat.bad_reward=drop_group", "--judge", "faithfulness"]
    asked += ["--texts", "12", "--pairs", "40"]
    assert main([*asked, "--calibrate", str(file), "--output", str(tmp_path / "raw.json")]) == 0
    printed = capsys.readouterr().out
    calibration = load_calibration(file, "key")
    assert f"calibration {calibration.version}: log-odds over" in printed
    assert f"written: {file}, for `reward.judges.faithfulness.calibration`" in printed
    assert set(calibration.measured) == {"planted", "sciq", "boolq", "rte"}
    named = f"reward.judges.faithfulness.calibration={file}"
    assert main([*asked, named, "--output", str(tmp_path / "calibrated.json")]) == 0
    raw, calibrated = (
        {one["set"]: one for one in json.loads((tmp_path / f"{name}.json").read_text())["entries"][0]["sets"]}
        for name in ("raw", "calibrated")
    )
    for name, of_set in calibration.measured.items():
        assert raw[name]["ece"] == pytest.approx(of_set["before"], abs=1e-6)
        assert calibrated[name]["auc"] == raw[name]["auc"] == pytest.approx(of_set["auc"], abs=1e-6)
    errors = [sum(one["ece"] for one in of.values()) for of in (raw, calibrated)]
    assert errors[1] < 0.6 * errors[0]
    line = refused(capsys, *asked[:4], "--calibrate", str(file))
    assert "--calibrate: one judge of entries that is a model" in line and "--judge faithfulness" in line


def test_values_in_training_and_the_records_name_the_map(server: Any, tmp_path: Path) -> None:
    config, file = server.judge(api="systemone"), tmp_path / "calibration.json"
    asked_of(config).write(file)
    judge = config.model_dump() | {"calibration": str(file)}
    reward = load_config(RewardConfig, {"reformat": {"faithfulness": 1.0}, "judges": {"faithfulness": judge}})
    [opened] = open_judges(reward.remote, {"faithfulness": "systemone"})
    assert opened.version.endswith(f", calibration {asked_of(config).version}")
    assert opened.range == built_in()["faithfulness"].range
    assert "calibration" not in reward.recorded()["judges"]["faithfulness"], "recorded by content, with the stage"
