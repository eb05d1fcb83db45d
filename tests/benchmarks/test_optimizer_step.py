"""The benchmark of optimizer steps runs whole at a small size, and counts what the iteration multiplies."""

import json
from pathlib import Path

import pytest
import torch

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
    assert set(row["counted"]) == set(row["timings"]["update"])
    told = capsys.readouterr().out
    assert "engine, muon" in told and f"{row['counted']['torch.optim.AdamW']['bytes'] / 1e6:.1f}" in told


def test_adamw_and_muon_are_counted_entry_by_entry() -> None:
    recipe = load_recipe("smoke")
    every = recipe.model.parameter_count()
    of = {
        name: program.counted(recipe, torch.float32, name)
        for name in ("engine, adamw", "engine, muon", "torch.optim.AdamW", "torch.optim.Muon and AdamW")
    }
    assert of["engine, adamw"] == of["torch.optim.AdamW"]
    assert of["engine, adamw"].adamw_entries == every and of["engine, adamw"].bytes == 40 * every
    muon, theirs = of["engine, muon"], of["torch.optim.Muon and AdamW"]
    assert muon.adamw_entries + muon.muon_entries == every and muon.product_flops == program.muon_flops(recipe)
    # The same work, of which torch's has the products in halves, and symmetric ones whole.
    assert muon.flops == theirs.flops and 1.3 < theirs.product_flops / muon.product_flops < 1.5
    assert (muon.products, theirs.products) == ("float32", "bfloat16") and muon.bytes > theirs.bytes
    halves = load_recipe("smoke", ["pretrain.optimizer.muon.products=bfloat16"])
    in_halves = program.counted(halves, torch.float32, "engine, muon")
    assert (in_halves.products, in_halves.bytes) == ("bfloat16", theirs.bytes)


def test_only_matrices_of_blocks_are_counted_and_q_k_and_v_apart() -> None:
    recipe = load_recipe("smoke")
    names = program.matrices_of(recipe)
    assert len(names) == 7 * recipe.model.layers and not any("norm" in name or "embed" in name for name in names)


def test_a_recipe_that_is_not_there_is_a_user_s_fault(capsys: pytest.CaptureFixture[str]) -> None:
    assert program.main(["--recipe", "nowhere"]) == 2
    assert "nowhere" in capsys.readouterr().err
