"""One process as a job of one."""

from collections.abc import Iterator

import pytest

from synpro_engine.dist import ParallelConfig, Topology, launched


@pytest.fixture(scope="module")
def topology() -> Iterator[Topology]:
    with launched(ParallelConfig()) as here:
        yield here
