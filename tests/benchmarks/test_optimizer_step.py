"""The benchmark of optimizer steps runs whole at a small size, and counts what the iteration multiplies."""

import json
from pathlib import Path

import pytest

from benchmarks import optimizer_step as program
from synpro_engine.cycle import load_recipe


def test_a_small_run_times_every_contender_and_writes_a_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--rounds", "2", "--stack", "2x32x48", "--output", str(tmp_path / "rows.jsonl")]
    assert program.main(["--recipe", "smoke", *options]) == 0
    [row] = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert len(row["timings"]["update"]) == 4 and len(row["timings"]["iteration"]) == 5
    assert all(timing["median"] > 0 for part in row["timings"].values() for timing in part.values())
    assert row["flops"]["iteration"] == 5 * 2 * 32 * 32 * (3 * 48 + 32)
    assert "engine, muon" in capsys.readouterr().out


def test_only_matrices_of_blocks_are_counted_and_q_k_and_v_apart() -> None:
    recipe = load_recipe("smoke")
    names = program.matrices_of(recipe)
    assert len(names) == 7 * recipe.model.layers and not any("norm" in name or "embed" in name for name in names)


def test_a_recipe_that_is_not_there_is_a_user_s_fault(capsys: pytest.CaptureFixture[str]) -> None:
    assert program.main(["--recipe", "nowhere"]) == 2
    assert "nowhere" in capsys.readouterr().err
