"""What a GPU machine is asked runs here at tiny shapes; a part that fails, hangs or cannot run loses no other."""

import json
import math
import os
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import torch

from benchmarks.common.records import read_lines
from benchmarks.gpu_acceptance import __main__ as program
from benchmarks.gpu_acceptance import copies, grpo, layouts, races
from benchmarks.gpu_acceptance.part import Line, Part, Place, Program
from benchmarks.gpu_acceptance.parts import PARTS
from benchmarks.gpu_acceptance.runner import kept, run
from benchmarks.kernels.case import SIZES
from benchmarks.kernels.cases import cases
from synpro_engine.config import UserError
from synpro_engine.cycle import load_recipe
from synpro_engine.cycle.layouts import check_recipe
from synpro_engine.dist import Layout
from synpro_engine.model import offload
from synpro_engine.model.config import check_layout

WHERE = {"device": "here", "commit": "abc"}
QUICK = ("linear_logprob", "pretrain", "decode", "grpo", "influence", "checkpoint")
"""Whose dry runs take less than 15 seconds of a CPU each."""


def place(folder: Path) -> Place:
    return Place(dry=True, folder=folder, gpus=1)


def python(*lines: str) -> Program:
    return Program([sys.executable, "-c", "\n".join(lines)])


def says(records: Sequence[object], log: str) -> Iterator[Line]:
    yield Line("said", "yes" if "hello" in log else "no")


def part(*programs: Program, **more: object) -> Part:
    return Part(programs=lambda place: list(programs), lines=says, **more)


def test_a_part_that_ends_well_is_kept_and_tells_its_lines(tmp_path: Path) -> None:
    found = run("good", part(python("print('hello')")), place(tmp_path), WHERE)
    assert found["status"] == "ok" and found["lines"] == [["said", "yes", "", "", ""]]
    assert kept("good", place(tmp_path), WHERE) == json.loads((tmp_path / "good.json").read_text())
    assert "hello" in (tmp_path / "good.log").read_text()


def test_a_part_that_fails_tells_its_last_error_and_its_other_programs_run(tmp_path: Path) -> None:
    bad = python("print('hello')", "raise ValueError('no such kernel')")
    other = python(f"open({str(tmp_path / 'ran')!r}, 'w')")
    found = run("bad", part(bad, other), place(tmp_path), WHERE)
    assert (tmp_path / "ran").exists()
    assert found["status"] == "failed" and found["error"] == "ValueError: no such kernel"
    assert found["lines"] == [["said", "yes", "", "", ""]]


def test_a_part_that_is_run_again_goes_on_with_nothing_that_it_left(tmp_path: Path) -> None:
    (tmp_path / "good-1" / "pretrain").mkdir(parents=True)
    (tmp_path / "other-1").mkdir()
    run("good", part(python("print('hello')")), place(tmp_path), WHERE)
    assert not (tmp_path / "good-1").exists() and (tmp_path / "other-1").exists()


@pytest.mark.parametrize(("plain", "reached"), [("ok", "yes"), ("failed", "NO")])
def test_losses_are_right_only_where_plain_pytorch_was_there_to_be_held_to(plain: str, reached: str) -> None:
    about = {"case": "a", "recipe": "a", "ratios": [1.0] if plain == "ok" else []}
    records = [
        {**about, "contender": "synpro_engine", "status": "ok"},
        {**about, "contender": "plain-pytorch", "status": plain},
    ]
    [line] = PARTS["pretrain"].lines(records, "")
    assert line.reached == reached


def test_a_form_of_the_forward_is_told_beside_the_usual_one_of_the_same_sizes() -> None:
    def row(contender: str, tokens: int, seconds: float, **more: object) -> dict[str, object]:
        about = {
            "bench": "linear_logprob",
            "contender": contender,
            "settings": {"tokens": tokens},
            "status": "ok",
            "reason": None,
            "tflops": 1.0,
        }
        return {**about, "timing": {"median": seconds}, **more}

    failed = {"status": "wrong", "reason": "logprob", "timing": None}
    records = [
        row("linear_logprob", 9, 8.0), row("persistent", 9, 1.0, **failed), row("linear_logprob", 7, 3.0),
        row("persistent", 7, 2.0), row("linear_logprob", 5, 1.0, **failed), row("persistent", 5, 1.0),
    ]  # fmt: skip
    races = {"bench": "races", "op": "linear_logprob, forward", "runs": 50, "differing": 3, "wrong": "3 of 50 differ"}
    raced, wrong, right, alone = PARTS["persistent"].lines([*records, races], "")
    assert (raced.figure, raced.reached) == ("3", "NO")
    assert (wrong.unit, wrong.reached) == ("wrong: logprob", "NO")
    assert (right.unit, right.reached) == ("TFLOP/s, 1.50x linear_logprob", "yes")
    assert (alone.unit, alone.reached) == ("TFLOP/s; linear_logprob: wrong", "yes")


def test_memory_that_could_not_be_measured_is_said() -> None:
    about = {"case": "a", "recipe": "a", "contender": "synpro_engine", "status": "ok", "micro_batches": 1}
    [_, _, line] = PARTS["pretrain"].lines([{**about, "tokens_per_s": 1.0, "mfu": 0.5, "memory_reason": "full"}], "")
    assert (line.figure, line.unit) == ("-", "not measured: full")


def test_an_op_that_fails_in_a_run_leaves_the_records_of_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    right = next(case for case in cases(SIZES["tiny"], torch.bfloat16, torch.device("cpu")) if case.name == "swiglu")
    failing = replace(right, name="fails", ours=lambda i: (i["nothing"],))
    monkeypatch.setattr(races, "cases", lambda *of: [failing, right])
    output = tmp_path / "rows.jsonl"
    assert races.main(["--sizes", "tiny", "--runs", "2", "--output", str(output)]) == 1
    lines = list(PARTS["races"].lines(read_lines(output), ""))
    assert [(line.what, line.figure, line.unit, line.reached) for line in lines] == [
        ("fails", "-", "failed: 'nothing'", "NO"), ("swiglu", "0", "of 2 runs differ", "yes"),
    ]  # fmt: skip


def test_of_tests_that_were_ended_it_is_told_how_far_they_were_and_of_those_before_what_they_found() -> None:
    log = (
        "$ python -m pytest tests/a\n.... [ 50%]\n.F.. [100%]\n1 failed, 7 passed, 2 skipped in 12.3s\n"
        "$ python -m pytest --ignore=tests/a tests/c\nssss [100%]\n4 skipped, 2 deselected in 1.0s\n"
        "$ python -m pytest tests/b\n.... [  8%]\n.... [ 16%]\n"
    )
    assert [(line.what, line.figure, line.reached) for line in PARTS["tests"].lines([], log)] == [
        ("pytest tests/a", "1 failed, 7 passed, 2 skipped", "NO"),
        ("pytest tests/c", "4 skipped, 2 deselected", "-"), ("pytest tests/b", "16%", "NO"),
    ]  # fmt: skip


def test_steps_beside_copies_are_those_without_and_one_that_brings_other_bytes_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--recipe", "smoke", "pretrain.in_run=null", "model.layers=1", "--folder", str(tmp_path)]
    assert copies.main([*options, "--output", str(tmp_path / "rows.jsonl")]) == 0
    records = read_lines(tmp_path / "rows.jsonl")
    assert [(record["way"], record["apart"]) for record in records] == [
        ("offload_layers", 0.0), ("async_checkpoints", 0.0), ("parked", 0.0),
    ]  # fmt: skip
    assert all(record["bytes"] for record in records)
    assert [line.reached for line in PARTS["copies"].lines(records, "") if line.asked] == ["yes"] * 3
    monkeypatch.setattr(offload._Bus, "back", lambda bus, host: torch.zeros_like(host))
    assert copies.main([*options, "--only", "offload_layers"]) == 1
    assert "error: offload_layers: " in (told := capsys.readouterr().err) and "apart from steps without it" in told


def test_steps_of_grpo_are_wrong_where_the_trainer_has_other_numbers_than_the_sampler_and_where_nothing_moves() -> None:
    right = {"step": 1, "sampler_gap": 0.01, "loss": 0.0, "grad_norm": 1.0}
    assert grpo.faults([right, right]) == []
    [told] = grpo.faults([right, {**right, "sampler_gap": 0.2}])
    assert told == "the trainer's log-probabilities are 0.2 from the sampler's"
    for fault in ({"grad_norm": 0.0}, {"loss": float("nan")}, {"grad_norm": float("nan")}):
        assert grpo.faults([right, {**right, "step": 2, **fault}]) == ["step 2 moved nothing, or has no finite loss"]
    assert grpo.faults([{**right, "sampler_gap": float("nan")}])
    about = {"model": "a", "prompts": 8, "new": 4, "tokens": 256.0, "seconds": {"rollout": 1.0, "train": 1.0}}
    for peak, wrong in ((2e9, ""), (None, "so it is")):
        record = {**about, "peak_bytes": peak, "sampler_gap": 0.01, "wrong": wrong}
        lines = {line.what: line for line in PARTS["grpo"].lines([record], "")}
        assert lines["a, a step of 8 x 8 x 4"].figure == "2.00"
        assert lines["a, a step of 8 x 8 x 4, drawn"].figure == "128"
        assert ("a, a step of 8 x 8 x 4, peak" in lines) == (peak is not None)
        assert lines["trainer and sampler"].reached == ("NO" if wrong else "yes")


def test_characters_come_back_from_their_ids_and_none_is_half_of_one() -> None:
    tokenizer = grpo.Characters(100352)
    text = tokenizer.decode(range(100352))
    assert len(set(text)) == 100351 and text.encode() and tokenizer.encode("a b") == [97, 32, 98]


def test_a_way_is_wrong_by_its_weights_and_by_memory_that_it_does_not_save() -> None:
    def run(weight: float, peak: int | None = None) -> copies.Trained:
        return copies.Trained(losses=[1.0], weights=[torch.tensor([weight])], peak_bytes=peak)

    alike = [run(1.0, 5), run(1.0, 5)]
    assert not copies.held(run(1.0, 4), {"saves": True}, alike)["wrong"]
    assert not copies.held(run(1.0, 9), {}, alike)["wrong"]
    assert "takes 5 bytes at the most, without it 5" in copies.held(run(1.0, 5), {"saves": True}, alike)["wrong"]
    assert copies.held(run(float("nan")), {}, alike)["wrong"] and copies.held(run(1.01), {}, alike)["wrong"]
    assert not copies.held(run(1.01), {}, [run(1.0), run(0.99)])["wrong"], "sums in any order"
    assert copies.held(run(1.0), {"wrong": "a fault"}, alike)["wrong"] == "a fault"


def test_a_layout_whose_first_step_is_not_that_of_one_process_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--recipe", "smoke", "pretrain.micro_batch=1", "model.layers=1", "--folder", str(tmp_path)]
    assert layouts.main([*options, "--output", str(tmp_path / "rows.jsonl")]) == 0
    records = read_lines(tmp_path / "rows.jsonl")
    assert [(record["optimizer"], set(record["apart"].values())) for record in records] == [
        ("adamw", {0.0}), ("muon", {0.0}),
    ]  # fmt: skip
    [line] = PARTS["layouts"].lines(records, "")
    assert line.unit == "there is one GPU" and not line.reached
    steps = records[0]["steps"]
    straight = "straight on"
    behind = {straight: steps[1], "elsewhere": [value * 1.1 for value in steps[1]]}
    assert layouts.held(steps, steps, behind)["wrong"] == "the step elsewhere 0.1 apart"
    off = [[value * 1.001 for value in step] for step in steps]
    assert layouts.held(off, steps, {straight: steps[1]})["wrong"] == "first step 0.001 apart"
    assert layouts.held([[math.nan] * 2] * 3, steps, {straight: steps[1]})["wrong"].endswith("later steps nan apart")


@pytest.mark.parametrize("gpus", [1, 2, 4, 8])
def test_every_layout_that_is_asked_of_so_many_gpus_is_one_of_its_recipe(gpus: int, tmp_path: Path) -> None:
    programs = PARTS["layouts"].programs(Place(dry=False, folder=tmp_path, gpus=gpus))
    asked = [list(one.arguments) for one in programs]
    assert len(asked) == 1 + sum(len(more) for count, more in layouts.LAYOUTS.items() if count <= gpus)
    for words in asked[1:]:
        ranks = int(words[words.index("--nproc-per-node") + 1])
        recipe = load_recipe("quickstart", [word for word in words if "=" in word])
        check_layout(recipe.model, Layout.of(recipe.parallel, ranks))


@pytest.mark.parametrize("gpus", [1, 2, 3, 4, 8])
def test_the_smoke_part_takes_as_many_ranks_as_its_recipe_can(gpus: int, tmp_path: Path) -> None:
    programs = PARTS["smoke"].programs(Place(dry=False, folder=tmp_path, gpus=gpus))
    given = [list(one.arguments) for one in programs]
    ranks = [int(words[words.index("--nproc-per-node") + 1]) for words in given]
    assert ranks == [1, 2][:gpus]
    for count in ranks:
        check_recipe(load_recipe("smoke", ["dtype=bfloat16"]), count)


def test_a_part_that_takes_too_long_is_ended_with_all_that_it_started(tmp_path: Path) -> None:
    child = "import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])"
    begin = time.monotonic()
    found = run(
        "slow", part(python(child, "print('hello', flush=True)", "time.sleep(600)"), seconds=3), place(tmp_path), WHERE
    )
    assert found["status"] == "timed out" and found["error"] == "ended after 3 s"
    assert time.monotonic() - begin < 60
    assert not [
        one for one in psutil.Process().children(recursive=True) if "time.sleep(600)" in " ".join(one.cmdline())
    ]


def test_a_part_that_cannot_run_is_skipped_and_tried_again(tmp_path: Path) -> None:
    found = run("none", part(python(), missing=lambda: "no such program"), place(tmp_path), WHERE)
    assert (found["status"], found["error"]) == ("skipped", "no such program")
    assert kept("none", place(tmp_path), WHERE) is None


def test_a_part_that_ends_well_and_tells_nothing_has_failed(tmp_path: Path) -> None:
    mute = Part(programs=lambda place: [python("print('hello')")], lines=lambda records, log: iter(()))
    assert run("mute", mute, place(tmp_path), WHERE)["error"] == "it ended well and told nothing"


def test_records_of_another_device_or_of_a_dry_run_are_not_taken_for_this_ones(tmp_path: Path) -> None:
    run("good", part(python("print('hello')")), place(tmp_path), WHERE)
    with pytest.raises(UserError, match="device is here, and now there"):
        kept("good", place(tmp_path), {**WHERE, "device": "there"})
    with pytest.raises(UserError, match="dry_run is True, and now False"):
        kept("good", Place(dry=False, folder=tmp_path, gpus=1), WHERE)


def test_parts_that_are_there_are_kept_and_one_that_fails_ends_with_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(PARTS, "decode", part(python("print('hello')")))
    monkeypatch.setitem(PARTS, "checkpoint", part(python("raise SystemExit('error: full')")))
    options = ["--dry-run", "--folder", str(tmp_path), "--parts", "checkpoint,decode"]
    assert program.main(options) == 1
    shown = capsys.readouterr().out
    assert "failed: error: full" in shown.splitlines()[-2] and shown.splitlines()[-1].split() == [
        "decode",
        "said",
        "yes",
    ]
    assert program.main(options) == 1  # a failure is kept as well
    assert "==>" not in capsys.readouterr().out
    assert program.main([*options, "--again"]) == 1
    assert "==> decode" in capsys.readouterr().out


@pytest.mark.skipif(os.path.exists("/dev/nvidia0"), reason="there is a GPU")
def test_without_a_gpu_only_a_dry_run_goes(capsys: pytest.CaptureFixture[str]) -> None:
    assert program.main(["--parts", "decode"]) == 2
    assert "no CUDA device here; --dry-run" in capsys.readouterr().err


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in PARTS]
)
def test_every_part_runs_at_tiny_shapes(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert program.main(["--dry-run", "--folder", str(tmp_path), "--parts", name]) == 0, capsys.readouterr().out
    found = json.loads((tmp_path / f"{name}.json").read_text()) if (tmp_path / f"{name}.json").exists() else None
    if found is None:  # what it needs is not here, which is said
        assert "skipped: " in capsys.readouterr().out
        return
    assert found["status"] == "ok" and found["lines"]
    assert not [line for line in found["lines"] if line[4] == "NO" and "accurate" in line[3]]
