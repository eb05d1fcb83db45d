"""Memory that huge pages were asked for has them where the kernel gives any; a program asks once for all of its own."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from synpro_engine.backend.huge_pages import PAGE_BYTES, VARIABLE, ask_for_huge_pages
from synpro_engine.cli.main import main

_SETTING = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def huge_bytes(tensor: torch.Tensor) -> int:
    """Of the mapping that the tensor's middle lies in, what is in huge pages."""
    middle = tensor.data_ptr() + tensor.nbytes // 2
    inside = False
    for line in Path("/proc/self/smaps").read_text(encoding="ascii").splitlines():
        if bounds := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
            inside = int(bounds[1], 16) <= middle < int(bounds[2], 16)
        elif inside and line.startswith("AnonHugePages:"):
            return int(line.split()[1]) << 10
    return 0


@pytest.mark.skipif(
    sys.platform != "linux" or not _SETTING.exists() or "[never]" in _SETTING.read_text(), reason="no huge pages here"
)
def test_what_was_asked_for_lies_in_huge_pages_and_is_what_it_was() -> None:
    tensor = torch.arange(8 * PAGE_BYTES // 4, dtype=torch.int32)
    asked = ask_for_huge_pages([tensor, tensor.view(2, -1)[1]])
    # Of eight pages' memory seven are whole ones wherever it begins; a view is the same memory, asked for once.
    assert 7 * PAGE_BYTES <= asked <= 8 * PAGE_BYTES
    if huge_bytes(tensor) == 0:
        pytest.skip("the kernel has none to give, or does so later")
    assert torch.equal(tensor, torch.arange(len(tensor), dtype=torch.int32))


def test_small_tensors_and_those_of_other_devices_are_left_alone() -> None:
    assert ask_for_huge_pages([torch.zeros(1000), torch.zeros(10 << 20, device="meta")]) == 0


STARTS = pytest.mark.skipif(
    sys.platform != "linux" or Path("/dev/nvidiactl").exists(), reason="of glibc, where no GPU computes"
)
_PROGRAM = f"""
import os, sys
from synpro_engine.backend.huge_pages import start_with_huge_pages
print(os.getpid(), flush=True)
start_with_huge_pages()
print(os.getpid(), sys.flags.optimize, sys.argv[1:], os.environ.get({VARIABLE!r}))
"""


def lines_of(given: str | None) -> list[str]:
    environment = {name: value for name, value in os.environ.items() if name != VARIABLE}
    environment |= {} if given is None else {VARIABLE: given}
    command = [sys.executable, "-O", "-c", _PROGRAM, "an argument", "--flag"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=True)
    return done.stdout.splitlines()


@STARTS
def test_a_program_starts_again_once_as_the_same_process_with_the_same_arguments() -> None:
    first, again, said = lines_of(None)
    assert first == again == said.split()[0]
    assert "['an argument', '--flag']" in said and "glibc.malloc.hugetlb=1" in said
    assert said.split()[1] == "1", "the interpreter's own options stay"


@STARTS
def test_settings_of_the_allocator_that_were_given_stand_and_others_stay_beside_ours() -> None:
    assert len(lines_of("glibc.malloc.tcache_count=0")) == 2
    assert "glibc.rtld.nns=4:glibc.malloc.hugetlb=1" in lines_of("glibc.rtld.nns=4")[-1]


@STARTS
def test_a_command_within_another_program_starts_nothing_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    assert main(["--version"]) == 0
    assert VARIABLE not in os.environ
