"""Every benchmark can be called by its name, and says what it takes."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PROGRAMS = sorted(
    [path.parent.name for path in (ROOT / "benchmarks").glob("*/__main__.py")]
    + [path.stem for path in (ROOT / "benchmarks").glob("*.py") if path.stem != "__init__"]
)


def test_the_programs_are_found():
    assert {"linear_logprob", "influence_truth", "influence_cost", "static", "plateau_table"} <= set(PROGRAMS)


def _by_two(words: list[str]) -> subprocess.CompletedProcess[str]:
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", f"benchmarks.{words[0]}"]
    return subprocess.run(
        [sys.executable, *launcher, *words[1:]], cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT / "kernels")},
        capture_output=True, text=True, check=False,
    )  # fmt: skip


@pytest.mark.slow
def test_of_two_ranks_that_sample_one_tells_and_writes(tmp_path: Path) -> None:
    output = tmp_path / "rows.jsonl"
    tiny = ["--recipe", "smoke", "--rows", "8", "--top-p", "0.9", "--prompt", "16", "--new", "4"]
    done = _by_two(["generate", *tiny, "--output", str(output)])
    assert done.returncode == 0, done.stderr
    assert len(re.findall("^model ", done.stdout, re.MULTILINE)) == len(output.read_text().splitlines()) == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [["gpu_acceptance.grpo", "--recipe", "smoke", "--folder", "folder"], ["rollout"], ["influence_cost"]],
    ids=lambda words: words[0],
)
def test_what_measures_one_process_refuses_two(words: list[str], tmp_path: Path) -> None:
    output = tmp_path / "rows.jsonl"
    done = _by_two([*(str(tmp_path / word) if word == "folder" else word for word in words), "--output", str(output)])
    assert done.returncode and "error: measures one process, and 2 were started" in done.stderr
    assert not done.stdout and not output.exists()


# One process for all of them, because most of a program's start is importing what the others import, too.
_HELP = """
import contextlib, io, json, runpy, sys
told = {}
for name in sys.argv[1:]:
    sys.argv = [name, "--help"]
    with contextlib.redirect_stdout(io.StringIO()) as out:
        try:
            runpy.run_module(f"benchmarks.{name}", run_name="__main__", alter_sys=True)
        except SystemExit as end:
            told[name] = [end.code, out.getvalue()]
print(json.dumps(told))
"""


@pytest.fixture(scope="module")
def told() -> dict[str, tuple[int, str]]:
    """By program: the exit code of `--help`, and what it wrote."""
    done = subprocess.run(
        [sys.executable, "-c", _HELP, *PROGRAMS], cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT / "kernels")},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("name", PROGRAMS)
def test_every_program_says_what_it_takes_and_is_documented(told: dict[str, tuple[int, str]], name: str):
    code, out = told[name]
    assert code == 0
    assert out.startswith(f"usage: python -m benchmarks.{name} ")
    assert f"python -m benchmarks.{name}" in (ROOT / "benchmarks" / "README.md").read_text()
