"""Multiples of text from losses, the order of trainings, and that every arm is a recipe."""

from pathlib import Path
from typing import Any

import pytest

from benchmarks.common.multiples import mean
from benchmarks.data_bound.__main__ import jobs, main
from benchmarks.data_bound.arms import ARMS, BATCH_TOKENS, CURVES, MEMBERS, SWEEPS
from benchmarks.data_bound.cost import sweep_flops, training_flops
from benchmarks.data_bound.losses import best
from benchmarks.data_bound.runs import RECIPE
from synpro_engine.config import json_text
from synpro_engine.cycle import load_recipe
from synpro_engine.sweep.ranges import ranges_of
from synpro_engine.train.metrics import flops_per_token

UNTUNED, TUNED = CURVES.values()


def test_a_mean_of_three_seeds_has_students_interval_and_one_seed_has_none() -> None:
    found = mean([1.0, 2.0, 3.0])
    assert found.low is not None and found.high is not None
    assert (found.value, found.high - found.value) == pytest.approx((2.0, 4.303 / 3**0.5), rel=1e-3)
    assert mean([1.0]).low is None
    many = mean([0.0, 1.0] * 30)
    assert many.low is not None and 0.35 < many.low < many.value == 0.5


def test_the_quoted_loss_is_of_the_validation_split_where_the_reference_is_lowest() -> None:
    curve = [
        {"step": 1, "reference": 5.0, "validation": 4.0},
        {"step": 2, "reference": 4.0, "validation": 4.5},
        {"step": 3, "reference": 4.2, "validation": 4.4},
    ]
    assert best({"curve": curve}) == 4.5


def test_students_train_after_those_that_they_learn_from() -> None:
    order = list(jobs(list(ARMS)))
    assert len(order) == len(set(order)) == sum(len(arm.seeds) for arm in ARMS.values())
    assert all(order.index(("student", 11)) > order.index(("all", seed)) for seed in MEMBERS)


@pytest.mark.parametrize("name", ARMS)
def test_every_arm_is_a_recipe_of_whole_epochs(name: str) -> None:
    arm = ARMS[name]
    teachers = [] if arm.teachers is None else ["pretrain.distill.teachers=[x]"]
    recipe = load_recipe(str(RECIPE), [*arm.length, *arm.settings, *teachers])
    schedule, steps = recipe.pretrain.schedule, recipe.pretrain.max_steps
    assert schedule.total_steps == steps
    read = steps * recipe.pretrain.global_batch * recipe.model.seq_len
    assert read == pytest.approx(arm.epochs * arm.unique, rel=1e-3)


@pytest.mark.parametrize("name", SWEEPS)
def test_every_sweep_varies_what_a_recipe_has(name: str) -> None:
    sweep = SWEEPS[name]
    recipe = load_recipe(str(RECIPE), sweep.settings)
    assert len(ranges_of(sweep.over, recipe)) == len(sweep.over)


def test_first_trainings_are_shown_before_there_is_a_curve(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "r.jsonl").write_text(json_text(_record("untuned", 1, 4.5, 100)) + "\n")
    assert main(["--from", str(tmp_path / "r.jsonl")]) == 0
    assert "| untuned | AdamW, decay 0.1 | 1 | 5.000 |" in capsys.readouterr().out


def _record(arm: str, seed: int, loss: float, tokens: int) -> dict[str, Any]:
    curve = [{"step": step, "reference": loss + 2 / step, "validation": loss + 2 / step} for step in (1, 2, 4)]
    return {"bench": "data_bound", "arm": arm, "seed": seed, "unique_tokens": tokens, "tokens": 8 * tokens,
            "flops": 1e12, "curve": curve, "optimizer": {"name": "muon" if arm == "muon" else "adamw"}}  # fmt: skip


def _page(tmp_path: Path, records: list[dict[str, Any]]) -> str:
    (tmp_path / "r.jsonl").write_text("".join(json_text(one) + "\n" for one in records))
    docs = tmp_path / "docs"
    docs.mkdir()
    names = ("state", "arms", "verdict", "worth", "curve", "sweeps")
    (docs / "data-bound.md").write_text("".join(f"<!-- {name} -->\n<!-- end of {name} -->\n" for name in names))
    assert main(["--from", str(tmp_path / "r.jsonl"), "--docs", str(docs)]) == 0
    assert (docs / "images" / "data_bound.png").stat().st_size > 10_000
    return (docs / "data-bound.md").read_text()


_SIZES = (100, 200, 400, 800)
_TRIAL = {"state": "complete", "loss": 4.0, "step": 440, "settings": {"pretrain.optimizer.lr": 0.002}}


def test_the_page_is_made_from_records_alone(tmp_path: Path) -> None:
    records = [_record(name, 1, 4.5 - number / 2, _SIZES[number]) for number, name in enumerate(UNTUNED)]
    records += [_record("tuned", seed, 3.9 + seed / 100, 100) for seed in (1, 2, 3)]
    records.append({"bench": "data_bound_sweep", "sweep": "tuned", "trials": [_TRIAL, _TRIAL | {"state": "pruned"}]})
    page = _page(tmp_path, records)
    assert "7 of 31 trainings are on record." in page and "untuned (seeds 2, 3); muon (seeds 1, 2, 3)" in page
    assert "| tuned | AdamW, rate and decay tuned | 3 | 4.420 |" in page and "| tuned | 2.23 (" in page
    assert "| tuned | 2 | 1 | `optimizer.lr` 0.002 | 4.000 | " in page
    assert "The multiple of tuned repetition waits for three sizes: `tuned-600k`, `tuned-1200k`, `tuned-2400k`" in page


def test_both_curves_have_multiples_of_their_own_where_they_are_there(tmp_path: Path) -> None:
    records = [_record(name, 1, 4.5 - number / 2, _SIZES[number]) for number, name in enumerate(UNTUNED)]
    records += [_record(name, 1, 4.0 - number / 2, _SIZES[number]) for number, name in enumerate(TUNED[:3])]
    worth = _page(tmp_path, [*records, _record("dropout", 1, 3.5, 100)]).partition("| arm | untuned")[2]
    [cells] = [line.split(" | ") for line in worth.splitlines() if line.startswith("| dropout |")]
    assert cells[1].startswith("4.00 ") and cells[4].startswith("2.00 ")
    assert (
        "The multiple of tuned repetition is read off fewer sizes than it will have: `tuned-2400k` is missing" in worth
    )


def test_arms_that_do_not_help_or_rise_to_their_end_are_named(tmp_path: Path) -> None:
    records = [_record("untuned", seed, 4.0 + seed / 1000, 100) for seed in (1, 2, 3)]
    records += [_record("dropout", seed, 4.1, 100) for seed in (1, 2, 3)]
    records += [_record("all", seed, 3.5 + seed / 1000, 100) for seed in (1, 2, 3)] + [_record("ema", 1, 3.9, 100)]
    muon = _record("muon", 1, 3.9, 100)
    muon["curve"].append({"step": 8, "reference": 9.0, "validation": 9.0})
    page = _page(tmp_path, [*records, muon])
    assert (
        "No help, with a mean loss at best that is no lower than that of untuned repetition: `dropout` (+0.098)."
        in page
    )
    assert "may be: intervals meet, or are of one seed: `muon` (-0.102), `ema` (-0.102)." in page
    assert "stopped in time: `muon` (from 4.400 to 9.000)." in page


def test_flops_have_muon_s_iterations_and_those_of_sweeps_are_all_trials() -> None:
    adamw, muon = _record("tuned", 1, 4.0, BATCH_TOKENS), _record("muon", 1, 4.0, BATCH_TOKENS)
    more = training_flops(muon) - training_flops(adamw)
    # Eight steps of five iterations, of four layers: q, k, v and output 128 x 128, and three matrices 128 x 512.
    square, wide = 128**2 * (3 * 128 + 128), 128**2 * (3 * 512 + 128)
    assert more == 8 * 5 * 4 * (4 * square + 3 * wide)
    trials = [_TRIAL, _TRIAL | {"step": None}, _TRIAL | {"settings": {"pretrain.optimizer.name": "muon"}}]
    recipe = load_recipe(str(RECIPE))
    products = flops_per_token(recipe.model, 256) * BATCH_TOKENS
    assert sweep_flops({"trials": trials}) == pytest.approx(440 * (2 * products + more / 8))
