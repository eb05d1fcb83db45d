"""Generation seen from other jobs: its status while it goes on, and taking part in it."""

import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from synpro_engine.cli import status_table
from synpro_engine.cli.main import main
from synpro_engine.cycle import load_recipe
from synpro_engine.cycle.generation import generation_status
from synpro_engine.synth import read_yield, work_status
from synpro_engine.synth.ledger import PartWriter, counts_of
from synpro_engine.synth.status import GenerationStatus
from synpro_engine.synth.work import Slice, WorkItem, WorkList
from tests.cli.refusals import refused

SMALL = ["pretrain.max_steps=4", "pretrain.plateau=null", "probe.sampled_steps=1", "tune={}"]


def record(reason: str | None) -> dict[str, object]:
    return {"reason": reason, "completion_tokens": 10, "text_tokens": 8}


def test_the_status_sums_what_is_on_disk_and_tells_rate_and_cost(tmp_path: Path) -> None:
    items = [
        WorkItem(slice=Slice(doc_id="d", start=n, end=n + 1, text="x"), operation="rephrase", key=str(n), seed=n)
        for n in range(10)
    ]
    WorkList(tmp_path).write(items, 4)
    assert work_status(tmp_path).tokens_per_s is None
    with PartWriter(tmp_path, "a") as part:
        records = [record(None), record(None), record("truncated"), record(None)]
        part.append(0, records, counts_of(records, 4, 3600.0))
    status = work_status(tmp_path)
    assert (status.prompts, status.done, status.accepted, status.refused) == (10, 4, 3, {"truncated": 1})
    assert (status.completion_tokens, status.text_tokens, status.workers) == (40, 24, 1)
    assert status.tokens_per_s == pytest.approx(40 / 3600, rel=0.01)
    assert status.seconds_left == pytest.approx(6 * 900, rel=0.01)
    assert status.worker_hours_per_billion == pytest.approx(1e9 / 24, rel=1e-6)
    text = "\n".join(status_table.lines({"round-1/generate-rephrase": status, "round-2/generate-rephrase": None}, 2.0))
    for part_of in ("4 of 10 prompts (40.0%)", "1 h 30 min left", "accepted 3 of 4", "truncated 1", "at 2 an hour",
                    "round-2/generate-rephrase: not begun"):  # fmt: skip
        assert part_of in text
    done = replace(status, done=10, worker_seconds=None, prompts_per_s=None, tokens_per_s=None)
    [*_, cost] = status_table.lines({"round-1/generate-rephrase": done}, 2.0)
    assert "the stage's time in stages.jsonl" in cost
    assert "cost" not in "".join(status_table.lines({"round-1/generate-rephrase": done}, None))


def test_a_run_that_generates_nothing_cannot_be_joined_and_tells_its_status(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = tmp_path / "run"
    assert "no such run" in refused(capsys, "generate", "smoke", "--status", "--dir", str(directory))
    assert main(["tokenize", "smoke", *SMALL, "--dir", str(directory)]) == 0
    capsys.readouterr()
    assert main(["generate", "smoke", *SMALL, "--status", "--dir", str(directory)]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "round-1/generate-rephrase: not begun",
        "round-1/generate-reformat: not begun",
    ]
    line = refused(capsys, "generate", "smoke", *SMALL, "--join", "--patience", "0", "--dir", str(directory))
    assert "no stage of it generates" in line


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--price", "2.5"], "--price is for --status"),
        (["--patience", "1"], "--patience is for --join"),
        (["--status", "--patience", "1"], "--patience is for --join"),
        (["--join", "--dry-run"], "give one of --join, --dry-run"),
        (["--status", "--join"], "give one of --status, --join"),
    ],
)
def test_options_that_do_not_go_together_begin_no_generation(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    assert message in refused(capsys, "generate", "smoke", *SMALL, *options, "--dir", str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_second_job_joins_the_generation_of_a_run(tmp_path: Path) -> None:
    directory, root = tmp_path / "run", Path(__file__).parents[2]
    settings = [*SMALL, "generate.batch_prompts=1", "generate.max_slices=60", "generate.operations=[rephrase]"]
    settings.append("generate.samples=16")  # it must last until the second job has started
    path = os.pathsep.join([str(root), str(root / "kernels"), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}

    def started(*options: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "synpro_engine", "generate", "smoke", *settings, *options]
        return subprocess.Popen([*command, "--dir", str(directory)], env=environment)

    recipe = load_recipe("smoke", settings)
    owner = started()
    try:
        helper: subprocess.Popen[bytes] | None = None
        workers, seen = 0, list[GenerationStatus]()
        while owner.poll() is None:
            if directory.is_dir() and helper is None and (directory / "round-1" / "probe").exists():
                helper = started("--join")
            if directory.is_dir():
                [status] = generation_status(recipe, directory).values()
                if status is not None and status.done < status.prompts:
                    seen.append(status)
                    workers = max(workers, status.workers)
            time.sleep(0.05)
        assert owner.returncode == 0 and helper is not None and helper.wait(60) == 0
    finally:
        owner.kill()
    assert workers == 2 and [s.done for s in seen] == sorted(s.done for s in seen)
    assert read_yield(directory / "round-1" / "generate-rephrase" / "corpus").completions == 960
