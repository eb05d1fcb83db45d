"""One process as a job of one, for tests that need no second rank."""

from collections.abc import Iterator

import pytest

from synpro_engine.dist import ParallelConfig, Topology, launched
from synpro_engine.model.config import ModelConfig
from tests.model.shapes import CONFIGS


@pytest.fixture(scope="module")
def topology() -> Iterator[Topology]:
    with launched(ParallelConfig()) as here:
        yield here


@pytest.fixture(params=list(CONFIGS))
def config(request: pytest.FixtureRequest) -> ModelConfig:
    """A tiny shape, mostly with grouped heads and heads of another width than d_model / heads."""
    return CONFIGS[request.param]
