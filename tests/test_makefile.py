"""Which Python `make` takes for its environment, and that `make test` runs all tests."""

import os
import shutil
import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
AS_ANOTHER = """#!/bin/sh
exec {python} -c 'import sys; sys.version_info = {version}; exec(sys.argv[1])' "$2"
"""


@pytest.mark.parametrize(
    ("there", "taken"),
    [
        ({"python3": 12, "python3.13": 13}, "python3"),  # the one in use
        ({"python3": 14, "python3.14": 14, "python3.12": 12, "python3.11": 11}, "python3.12"),
        ({"python3": 10, "python3.13": 13, "python3.12": 12}, "python3.13"),
        ({"python3": 14, "python3.14": 14}, "python3"),
        ({"python3": 10, "python3.14": 14}, "python3.14"),
        ({"python3": 10}, ""),
    ],
)
def test_make_takes_a_python_that_is_tested_and_a_newer_one_only_where_there_is_none(
    there: dict[str, int], taken: str, tmp_path: Path
) -> None:
    for name, minor in there.items():
        (tmp_path / name).write_text(AS_ANOTHER.format(python=sys.executable, version=(3, minor, 1)))
        (tmp_path / name).chmod(0o755)
    make = shutil.which("make")
    assert make is not None
    told = subprocess.run(
        [make, "--no-print-directory", "--eval", "which: ; @echo $(PYTHON)", "which"],
        cwd=ROOT, env={"PATH": str(tmp_path), "HOME": os.environ.get("HOME", "/")}, capture_output=True, text=True,
        check=True,
    )  # fmt: skip
    assert told.stdout.strip() == (str(tmp_path / taken) if taken else "")


def test_no_folder_of_tests_is_passed_over(pytestconfig: pytest.Config) -> None:
    """As one called `dist` or `build` would be by pytest's own settings, without a word."""
    passed_over = pytestconfig.getini("norecursedirs")
    tests = {folder.name for folder in (ROOT / "tests").rglob("*") if folder.is_dir() and any(folder.glob("test_*.py"))}
    assert "dist" in tests
    assert not [(name, pattern) for name in tests for pattern in passed_over if fnmatch(name, pattern)]
