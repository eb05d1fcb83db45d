"""Memory that huge pages were asked for has them where the kernel gives any, and holds what it held."""

import re
import sys
from pathlib import Path

import pytest
import torch

from synpro_engine.backend.huge_pages import PAGE_BYTES, ask_for_huge_pages

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
