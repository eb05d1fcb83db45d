"""The benchmark of tuning runs whole at a small size, and its rewards are what they are said to be."""

import json
from pathlib import Path

import pytest

from benchmarks.tuning import __main__ as program
from benchmarks.tuning.toy import form, length
from synpro_engine.reward import Candidate
from synpro_engine.rl.config import PRESETS
from synpro_engine.synth import Parsed


def of(text: str) -> Candidate:
    return Candidate(operation="toy", source="", raw=text, parsed=Parsed(ok=True, text=text))


def test_rewards_are_of_length_and_of_form() -> None:
    assert [length(of("a" * n)) for n in (12, 6, 24, 40)] == [1.0, 0.5, 0.0, 0.0]
    found = [round(3 * form(of(text))) for text in ("ab: cd.", "ab cd", ": cd.", "ab: cd: ef", "ab: .")]
    assert found == [3, 0, 2, 1, 2]


@pytest.mark.slow
def test_a_small_run_writes_curves_a_table_and_a_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "curves.jsonl"
    arguments = ["--methods", "ppo", "--seeds", "1", "--steps", "3", "--output", str(output), "--docs", str(tmp_path)]
    assert program.main(arguments) in (0, 1)  # three steps need not rise
    records = [json.loads(line) for line in output.read_text().splitlines()]
    assert [record["name"] for record in records] == ["ppo", "ppo", *program.FAULTS]
    assert all(len(record["reward"]) == 3 and None not in record["reward"] for record in records)
    assert (tmp_path / "images" / "tuning_curves.png").read_bytes()[:4] == b"\x89PNG"
    assert "entropy at the end" in capsys.readouterr().out


@pytest.mark.parametrize("name", [*PRESETS, *program.FAULTS])
def test_every_method_has_settings_that_fit(name: str) -> None:
    assert program.config_of(name, steps=5).steps == 5
