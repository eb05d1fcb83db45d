"""The benchmark of throughput runs whole at a small size; its rates are those of the work that it names."""

import json
from pathlib import Path

import pytest

from benchmarks.throughput import __main__ as program


def test_a_small_run_writes_a_line_for_each_part_and_its_rates_are_tokens_over_time(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--rounds", "1", "--rows", "8", "--top-p", "0.9", "--prompt", "16", "--new", "4", "--micro-batches", "2"]
    assert program.main(["--recipe", "smoke", *options, "--output", str(tmp_path / "rows.jsonl")]) == 0
    train, sample = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert train["tokens_per_step"] == 2 * 4 * 64 and train["planned_bytes"] > 140_000 * (4 + 4 + 8)
    assert train["tokens_per_s"] * train["timing"]["median"] == pytest.approx(512)
    # The first token of a completion comes of reading the prompt, and not of a step.
    assert sample["new_tokens_per_s"] * sample["step_seconds"] == pytest.approx(8)
    assert "8 sequences at top_p 0.9" in capsys.readouterr().out


def test_a_recipe_that_is_not_there_is_a_user_s_fault(capsys: pytest.CaptureFixture[str]) -> None:
    assert program.main(["--recipe", "nowhere"]) == 2
    assert "nowhere" in capsys.readouterr().err
