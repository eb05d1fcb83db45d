"""The allocator of a program that computes on the CPU: chosen once, by starting the same program again."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from synpro_engine.backend.allocator import VARIABLE
from synpro_engine.cli.main import main

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or Path("/dev/nvidiactl").exists(), reason="of glibc, where no GPU computes"
)
_PROGRAM = f"""
import os, sys
from synpro_engine.backend.allocator import keep_freed_memory
print(os.getpid(), flush=True)
keep_freed_memory()
print(os.getpid(), sys.flags.optimize, sys.argv[1:], os.environ.get({VARIABLE!r}))
"""


def _lines(given: str | None) -> list[str]:
    environment = {name: value for name, value in os.environ.items() if name != VARIABLE}
    environment |= {} if given is None else {VARIABLE: given}
    command = [sys.executable, "-O", "-c", _PROGRAM, "an argument", "--flag"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=True)
    return done.stdout.splitlines()


def test_a_program_starts_again_once_as_the_same_process_with_the_same_arguments() -> None:
    first, again, said = _lines(None)
    assert first == again == said.split()[0]
    assert "['an argument', '--flag']" in said and "glibc.malloc.hugetlb=1:glibc.malloc.mmap_max=0" in said
    assert said.split()[1] == "1", "the interpreter's own options stay"


def test_settings_of_the_allocator_that_were_given_stand_and_others_stay_beside_ours() -> None:
    assert len(_lines("glibc.malloc.tcache_count=0")) == 2
    assert "glibc.rtld.nns=4:glibc.malloc.hugetlb=1" in _lines("glibc.rtld.nns=4")[-1]


def test_a_command_within_another_program_starts_nothing_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    assert main(["--version"]) == 0
    assert VARIABLE not in os.environ
