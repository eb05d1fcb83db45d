"""Tests of Triton kernels on CPU tensors: `TRITON_INTERPRET=1 python -m pytest tests/kernels/interpreted`.

They need a process of their own, because Triton decides at decoration whether a kernel is interpreted. Elsewhere the
modules of this directory are skipped before they are imported. Uninitialised tensors are NaN in every test here, so an
output that a kernel forgot to write fails its test.
"""

import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from synpro_kernels.testing import nan_filled_empty

if importlib.util.find_spec("triton") is None:
    REASON = "Triton is not installed (it has no build for this platform, or `make setup-test` was not run)"
elif os.environ.get("TRITON_INTERPRET") != "1":
    REASON = "run with TRITON_INTERPRET=1; make test does"
else:
    REASON = ""
    from synpro_kernels.testing.interpreter import install

    install()


class Skipped(pytest.Module):
    def collect(self):
        pytest.skip(REASON, allow_module_level=True)


def pytest_pycollect_makemodule(module_path: Path, parent: pytest.Collector) -> pytest.Module | None:
    return Skipped.from_parent(parent, path=module_path) if REASON else None


@pytest.fixture(autouse=True)
def uninitialised_is_nan() -> Iterator[None]:
    with nan_filled_empty():
        yield
