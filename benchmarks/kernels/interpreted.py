"""Triton's kernels where there is no GPU: under TRITON_INTERPRET=1, on CPU tensors."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from synpro_kernels.testing import using


@contextmanager
def interpreted() -> Iterator[None]:
    """Within it ops take their Triton kernels, interpreted, if the process was started so; else nothing changes."""
    if os.environ.get("TRITON_INTERPRET") != "1":
        yield
        return
    from synpro_kernels.testing.interpreter import install  # imports Triton

    install()
    with using("triton"):
        yield
