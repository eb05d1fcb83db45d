"""Every benchmark can be called by its name, and says what it takes."""

import os
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


@pytest.mark.parametrize("name", PROGRAMS)
def test_every_program_says_what_it_takes_and_is_documented(name: str):
    done = subprocess.run(
        [sys.executable, "-m", f"benchmarks.{name}", "--help"],
        cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT / "kernels")}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"usage: python -m benchmarks.{name} ")
    assert f"python -m benchmarks.{name}" in (ROOT / "benchmarks" / "README.md").read_text()
