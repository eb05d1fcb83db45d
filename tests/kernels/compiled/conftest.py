"""Tests that read the machine code of Triton kernels, compiled for GPUs that need not be there.

Without Triton, and in the process where kernels are interpreted, the modules are skipped before they are imported.
"""

import os
from pathlib import Path

import pytest

from synpro_kernels.common.triton_status import triton_status

_USABLE, _WHY = triton_status()
if not _USABLE:
    REASON = f"{_WHY}; `make setup-test` installs it where it has a build for the platform"
elif os.environ.get("TRITON_INTERPRET", "0") != "0":
    REASON = "run without TRITON_INTERPRET: interpreted kernels have no machine code"
else:
    REASON = ""


class Skipped(pytest.Module):
    def collect(self):
        pytest.skip(REASON, allow_module_level=True)


def pytest_pycollect_makemodule(module_path: Path, parent: pytest.Collector) -> pytest.Module | None:
    return Skipped.from_parent(parent, path=module_path) if REASON else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave other machine code than Hopper's to the slow tests: compiling it takes longer than all that looks at it."""
    for item in items:
        parameters = item.callspec.params if isinstance(item, pytest.Function) and hasattr(item, "callspec") else {}
        if parameters.get("capability", 90) != 90:
            item.add_marker("slow")
