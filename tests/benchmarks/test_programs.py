"""Every benchmark can be called by its name, and says what it takes."""

import json
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
