"""`--profile`: chosen steps in a trace with their parts named; nothing else of the run changes."""

import gzip
import json
import re
from contextlib import closing
from pathlib import Path

import pytest
import torch

from synpro_engine.backend.profiling import ProfileRequest, StepProfiler, requested, shares, steps_of
from synpro_engine.cli.main import main
from synpro_engine.config import UserError
from synpro_engine.train.metrics import METRICS, read_metrics

SETTINGS = ("pretrain.max_steps=4", "pretrain.plateau=null", "pretrain.eval_every=2")


@pytest.mark.parametrize(("text", "steps"), [("12", (12, 12)), ("10-12", (10, 12)), ("1-1", (1, 1))])
def test_steps_are_one_or_a_range(text: str, steps: tuple[int, int]) -> None:
    assert steps_of(text, "--profile") == steps


@pytest.mark.parametrize("text", ["", "0", "-3", "3-", "5-4", "1,2", "a", "1-2-3", "²", "1 -2"])
def test_what_is_no_step_is_refused_by_the_options_name(text: str) -> None:
    with pytest.raises(UserError, match=r"--profile: .* is no step, such as 12"):
        steps_of(text, "--profile")


def test_a_profiled_run_has_its_steps_in_a_trace_and_its_own_results_unchanged(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain, looked = tmp_path / "plain", tmp_path / "looked"
    assert main(["pretrain", "smoke", *SETTINGS, "--dir", str(plain)]) == 0
    assert main(["pretrain", "smoke", *SETTINGS, "--dir", str(looked), "--profile", "2-3", "--profile-memory"]) == 0
    told = capsys.readouterr().err
    trace = looked / "profile" / "pretrain-step-2-3-rank0.json.gz"
    assert str(trace) in told
    events = json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]
    names = [event["name"] for event in events if event.get("cat") == "user_annotation"]
    assert [name for name in names if name.startswith("step ")] == ["step 2", "step 3"]
    # The evaluation behind step 2 is in; the checkpoint at the end of the run is not of these steps.
    assert {"data", "forward", "backward", "optimizer", "grad_reduce", "param_gather", "log", "evaluate"} <= {*names}
    assert any(event["name"] == "[memory]" for event in events)
    table = trace.with_name("pretrain-step-2-3-rank0.txt").read_text()
    assert re.search(r"^forward +\d+\.\d\d +\d+\.\d%$", table, re.MULTILINE)
    assert "aten::mm" in table
    losses = [
        [r["loss"] for r in read_metrics(at / "pretrain" / METRICS) if r["kind"] == "train"] for at in (plain, looked)
    ]
    assert losses[0] == losses[1]
    assert len(losses[0]) == 4


def test_steps_that_were_not_made_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pretrain", "smoke", *SETTINGS, "--dir", str(tmp_path / "run"), "--profile", "90-95"]) == 0
    assert "--profile: 90-95 was not among the steps made by rank 0" in capsys.readouterr().err
    assert not (tmp_path / "run" / "profile").exists()


def test_ranks_that_are_none_are_refused_before_anything_is_done(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--profile", "2", "--profile-ranks", "first"]
    assert main(["pretrain", "smoke", *SETTINGS, "--dir", str(tmp_path / "run"), *options]) == 2
    assert "--profile-ranks: 'first' is neither ranks, such as 0,8, nor all" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_step_that_fails_tells_its_own_fault_and_leaves_its_trace(tmp_path: Path) -> None:
    request = ProfileRequest(root=tmp_path, first=3, last=9)
    with requested(request):
        profiler = StepProfiler(tmp_path / "pretrain.partial", 0, torch.device("cpu"))
    with pytest.raises(ValueError, match="spoilt"), closing(profiler), profiler.step(3):
        raise ValueError("spoilt")
    assert [path.name for path in request.written] == [
        "pretrain-step-3-rank0.json.gz", "pretrain-step-3-rank0.txt",
    ]  # fmt: skip


def test_a_rank_that_was_not_asked_for_writes_nothing(tmp_path: Path) -> None:
    request = ProfileRequest(root=tmp_path, first=1, last=1, ranks=frozenset({7}))
    with requested(request):
        profiler = StepProfiler(tmp_path / "pretrain", 0, torch.device("cpu"))
    with closing(profiler), profiler.step(1):
        pass
    assert request.written == [] and not (tmp_path / "profile").exists()


def test_nobody_asked_is_nothing_done(tmp_path: Path) -> None:
    profiler = StepProfiler(tmp_path, 0, torch.device("cpu"))
    with profiler.step(1):
        pass
    profiler.close()
    assert not [*tmp_path.iterdir()]


def test_shares_stand_in_the_order_of_their_time_and_add_up() -> None:
    lines = shares({"data": 0.1, "forward": 0.3, "other": 0.0}, steps=2).splitlines()
    assert [line.split() for line in lines[1:]] == [
        ["forward", "150.00", "75.0%"], ["data", "50.00", "25.0%"], ["other", "0.00", "0.0%"], ["all", "200.00"],
    ]  # fmt: skip
