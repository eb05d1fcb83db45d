"""The benchmark of training: everyone does the same work, counts are exact, and what is slower is told."""

import json
import re
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.pretrain import __main__ as program
from benchmarks.pretrain.case import Case, cases
from benchmarks.pretrain.contenders import CONTENDERS, OURS, PLAIN, Ours, initial_weights
from benchmarks.pretrain.measure import memory
from benchmarks.pretrain.rivals import TrainerSteps
from benchmarks.pretrain.show import _memory, exponent
from synpro_engine.cycle import load_recipe
from synpro_engine.data import Batch
from synpro_engine.dist import ParallelConfig, launched

FAMILIES = ("olmo2", "llama", "mistral", "qwen2", "qwen3")


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("tied", [False, True])
def test_every_contender_has_our_losses_over_steps_of_training(family: str, tied: bool) -> None:
    # With an epsilon above the rounding of gradients, whose signs alone would move AdamW's first steps.
    changed = (f"model.family={family}", f"model.tie_embeddings={tied}", "model.kv_heads=2")
    case = Case("smoke", (*changed, "pretrain.optimizer.eps=1e-4"), 2)
    with launched(ParallelConfig()) as topology:
        weights, losses = initial_weights(case.recipe, topology), {}
        for name in (OURS, PLAIN, "transformers"):
            contender = CONTENDERS[name](case.recipe, weights, topology)
            losses[name] = [contender.step(case.batches(turn)) for turn in range(4)]
    assert len({*losses[OURS]}) == 4
    for name in (PLAIN, "transformers"):
        assert losses[name] == pytest.approx(losses[OURS], abs=2e-5)


@pytest.mark.parametrize("family", ["olmo2", "llama"])
def test_the_trainer_of_transformers_has_our_losses_step_by_step(family: str) -> None:
    pytest.importorskip("accelerate")  # of `--rivals`
    case = Case("smoke", (f"model.family={family}", "pretrain.optimizer.eps=1e-4"), 2)
    with launched(ParallelConfig()) as topology:
        weights = initial_weights(case.recipe, topology)
        ours, theirs = (CONTENDERS[name](case.recipe, weights, topology) for name in (OURS, "transformers-trainer"))
        for turn in range(4):
            batches = case.batches(turn)
            assert theirs.step(batches) == pytest.approx(ours.step(batches), abs=2e-5)
        assert theirs.held()["optimizer"] == pytest.approx(ours.held()["optimizer"], rel=0.01)
        assert isinstance(theirs, TrainerSteps)
        theirs.close()


def test_the_trainer_is_refused_where_it_would_take_other_devices_too(monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case("smoke", (), 1)
    with launched(ParallelConfig()) as topology:
        of_many = replace(topology, device=torch.device("cuda"))
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
        with pytest.raises(NotImplementedError, match=r"nn\.DataParallel"):
            CONTENDERS["transformers-trainer"](case.recipe, {}, of_many)


class _Elsewhere(Ours):
    def step(self, batches: Sequence[Batch]) -> float:
        return super().step(batches[:1]) + 0.01


def test_who_does_other_work_is_not_timed_and_who_cannot_run_says_why(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if torch.cuda.is_available():
        pytest.skip("Liger runs here")
    monkeypatch.setitem(CONTENDERS, "elsewhere", lambda recipe, weights, topology: _Elsewhere(recipe, topology))
    named = ",".join((OURS, "elsewhere", "liger", "torchtitan"))
    assert program.main(["smoke", "--only", named, "--rounds", "1", "--warmups", "0"]) == 0
    shown = capsys.readouterr().out
    assert re.search(r"elsewhere \(wrong: losses are 0\.01 from ours\)( +-){8}", shown)
    assert re.search(r"liger \(failed: its kernels are Triton's, for a GPU alone\)( +-){8}", shown)
    none = "(No module named 'torchtitan'|has Llama alone, .*|is another release .*)"
    assert re.search(rf"torchtitan \(failed: {none}\)( +-){{8}}", shown)


@pytest.mark.parametrize("family", ["olmo2", "llama", "qwen3"])
def test_flops_are_those_that_a_counted_step_makes(family: str) -> None:
    # With every score and every logit held, so that nothing is computed twice, and all products go through torch.
    case = Case("smoke", (f"model.family={family}", "pretrain.output_layer=materialised"), 1)
    with launched(ParallelConfig()) as topology:
        ours = Ours(case.recipe, topology)
        batches = case.batches(0)
        ours.step(batches)
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counted:
            ours.step(batches)
    model, hardware = case.flops_per_token
    assert counted.get_total_flops() == pytest.approx(case.tokens * model, rel=0.01)  # norms' weights are no products
    assert hardware > model


def test_a_recomputed_output_layer_counts_as_a_product_more() -> None:
    fused, recomputed = (Case("smoke", (f"pretrain.output_layer={way}",), 1) for way in ("fused", "recomputed"))
    model = load_recipe("smoke", []).model
    assert recomputed.flops_per_token[0] == fused.flops_per_token[0]
    assert recomputed.flops_per_token[1] - fused.flops_per_token[1] == 2 * model.vocab_size * model.d_model


def test_layers_that_are_made_again_count_a_forward_pass_more() -> None:
    kept, mlp, full = (
        Case("smoke", ("pretrain.in_run=null", f"pretrain.recompute={how}"), 1) for how in ("none", "mlp", "full")
    )
    model = load_recipe("smoke", []).model
    whole, output = kept.flops_per_token[0], 6 * model.vocab_size * model.d_model
    assert full.flops_per_token[0] == whole
    assert full.flops_per_token[1] - kept.flops_per_token[1] == pytest.approx((whole - output) / 3)
    assert mlp.flops_per_token[1] - kept.flops_per_token[1] == 2 * 3 * model.layers * model.d_model * model.ffn


def test_a_run_tells_rates_memory_and_where_a_step_goes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output, picture = tmp_path / "rows.jsonl", tmp_path / "rows.png"
    sweep = ["--sweep", "pretrain.micro_batch=2", "--only", f"{OURS},{PLAIN}", "--rounds", "1", "--warmups", "0"]
    assert program.main(["smoke", *sweep, "--memory", "--output", str(output), "--plot", str(picture)]) == 0
    records = [json.loads(line) for line in output.read_text().splitlines()]
    assert [record["status"] for record in records] == ["ok"] * 2
    for record in records:
        assert record["tokens_per_s"] * record["timing"]["median"] == pytest.approx(2 * 64)
        held = record["memory"]
        assert held["weights"] == load_recipe("smoke", []).model.parameter_count() * 4
        assert held["gradients"] == pytest.approx(held["weights"], rel=0.01)  # Megatron pads its buffers
        assert held["optimizer"] == pytest.approx(2 * held["weights"], rel=0.01)  # and a count of steps
        assert held["peak_bytes"] > held["weights"] + held["gradients"] + held["optimizer"]
    assert sum(records[0]["breakdown"].values()) > 0
    assert {"data", "forward", "backward", "optimizer", "log"} <= records[0]["breakdown"].keys()
    assert records[0]["checkpoint_seconds"] > 0
    assert "breakdown" not in records[1]
    shown = capsys.readouterr().out
    assert "smoke: olmo2 L2 D64 F128 V512, 1 x 2 x 64" in shown and "a step: " in shown and "a checkpoint: " in shown
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
@pytest.mark.parametrize("name", [OURS, PLAIN])
def test_a_peak_is_all_that_a_contender_holds_and_nothing_of_what_was_before(name: str) -> None:
    """Where there is next to nothing else: a copy of the weights that is freed again must not be taken off."""
    wide = ("model.layers=6", "model.d_model=384", "model.heads=4", "model.kv_heads=4", "model.ffn=1024")
    found: Any = memory(Case("smoke", (*wide, "pretrain.micro_batch=1"), 1), name)["memory"]
    held = found["weights"] + found["gradients"] + found["optimizer"]
    assert held > 4 * 40e6 and 0.9 * held < found["peak_bytes"] < 1.3 * held, found


@pytest.mark.slow
def test_times_stand_where_memory_could_not_be_measured() -> None:
    found = memory(Case("nowhere", (), 1), OURS)
    assert found.keys() == {"memory_reason"} and "nowhere" in str(found["memory_reason"])
    assert list(_memory({"contender": OURS, **found})) == [f"  {OURS}, memory not measured: {found['memory_reason']}"]


@pytest.mark.slow
def test_processes_of_one_machine_are_held_to_one_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "rows.jsonl"
    options = ["parallel.pp=2", "--micro-batches", "4", "--rounds", "1", "--warmups", "0", "--output", str(output)]
    assert program.main(["smoke", "--ranks", "2", *options]) == 0
    (record,) = [json.loads(line) for line in output.read_text().splitlines()]
    assert record["ranks"] == 2
    # Two stages, four micro-batches: a stage waits for one of five. What it sends comes on top.
    assert record["bubble"]["formula"] == pytest.approx(1 / 5)
    assert 0.0 < record["bubble"]["measured"] < 1.0
    assert "on 2: 100% of the speed a process on 2" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("ranks", "sweep", "jobs", "left_out"),
    [
        ("2", ["parallel.tp=1,2"], [("parallel.tp=1", 2), ("parallel.tp=2", 2)], 0),
        ("1,2", ["parallel.pp=1,2"], [("parallel.pp=1", 1), ("parallel.pp=1", 2), ("parallel.pp=2", 2)], 1),
    ],
)
def test_each_layout_of_a_sweep_over_ranks_is_a_job_of_its_own(
    ranks: str, sweep: list[str], jobs: list[tuple[str, int]], left_out: int,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    started: list[tuple[str, int]] = []

    def launch(given: Namespace, count: int, threads: str) -> list[program.Record]:
        assert given.sweep == ["model.layers=1,2"] and given.what[:2] == ["smoke", "model.d_model=32"]
        assert len({program._layout(case).model_dump_json() for case in program._cases(given)}) == 1, (
            "which a job refuses"
        )
        started.append((given.what[-1], count))
        about = {"contender": OURS, "case": "a", "overrides": given.what[1:], "ranks": count, "layout": "?"}
        return [{**about, "status": "failed", "reason": "?", "foreign_cpu_share": 0.0, "peak": "?"}]

    monkeypatch.setattr(program, "_launched", launch)
    swept = [word for one in ("model.layers=1,2", *sweep) for word in ("--sweep", one)]
    assert program.main(["smoke", "model.d_model=32", "--ranks", ranks, *swept]) == 1, "as records of what failed"
    assert started == jobs
    assert capsys.readouterr().err.count("left out: ") == left_out


@pytest.mark.slow
def test_a_sweep_of_layouts_over_ranks_is_one_table(capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--sweep", "parallel.tp=1,2", "--rounds", "1", "--warmups", "0"]
    assert program.main(["smoke", "--ranks", "2", *options]) == 0
    shown = capsys.readouterr().out
    assert "on 2 processes (DP2)" in shown and "on 2 processes (TP2)" in shown


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["nowhere"], "nowhere"),
        (["smoke", "--sweep", "model.layers"], "--sweep: 'model.layers' is not KEY=VALUE"),
        (["smoke", "--sweep", "parallel.tp=1,2"], "a job has one layout"),
        (["smoke", "--ranks", "none"], "--ranks: 'none' has no number"),
        (["smoke", "nowhere", "--ranks", "2"], "nowhere"),
        (["smoke", "model.layrs=2", "--ranks", "2"], "layrs"),
        (["smoke", "--ranks", "1", "parallel.tp=2"], "--ranks: no layout goes into any of these numbers"),
        (["smoke", "--against", "no-such-commit"], "no-such-commit is neither a file nor a commit"),
        (["smoke", "--against=--upload-pack=x"], "is neither a file nor a commit"),
        (["smoke", "--memory", "--ranks", "2"], "--memory: is the peak of one process on its own; leave out `--ranks`"),
        (["smoke", "--memory", "--against", "HEAD"], "--memory: is the peak of one process on its own"),
    ],
)
def test_a_user_s_fault_is_one_line(arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert program.main(arguments) == 2
    assert told in capsys.readouterr().err.strip().splitlines()[-1]


def test_sweeps_combine() -> None:
    found = list(cases([("smoke", ("model.d_model=32",))], ["model.layers=1,2", "model.seq_len=16,32"], 1))
    assert [case.overrides[1:] for case in found] == [
        ("model.layers=1", "model.seq_len=16"), ("model.layers=1", "model.seq_len=32"),
        ("model.layers=2", "model.seq_len=16"), ("model.layers=2", "model.seq_len=32"),
    ]  # fmt: skip


def test_steps_that_differ_in_a_setting_alone_have_figures_of_their_own() -> None:
    about = {"bench": "pretrain", "case": "a", "contender": OURS, "ranks": 1, "layout": "DP1"}
    settings = ("pretrain.recompute=none", "pretrain.recompute=full")
    records = [
        {**about, "overrides": [one], "status": "ok", "tokens_per_s": 5.0, "tokens_per_s_per_device": 5.0}
        for one in settings
    ]
    failed = {**about, "overrides": [], "status": "failed"}
    found = program.figures([*records, failed])
    assert sorted(found.values(), key=str) == [5.0, 5.0, None] and len(found) == 3
    assert [line.split(":")[0] for line in program._scaling([*records, failed])] == [
        f"a, {one} on 1" for one in settings
    ]


def test_cost_that_grows_as_a_power_has_its_exponent() -> None:
    assert exponent([1, 2, 4, 8], [3 * x**1.5 for x in (1, 2, 4, 8)]) == pytest.approx(1.5)
