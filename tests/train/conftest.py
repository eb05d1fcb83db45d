"""One process as a job of one, and the smallest model that has every kind of parameter."""

from collections.abc import Iterator

import pytest

from synpro_engine.dist import ParallelConfig, Topology, launched
from synpro_engine.model.config import ModelConfig


@pytest.fixture(scope="module")
def topology() -> Iterator[Topology]:
    with launched(ParallelConfig()) as here:
        yield here


@pytest.fixture
def shape() -> ModelConfig:
    return ModelConfig(layers=2, d_model=32, heads=4, kv_heads=2, ffn=48, vocab_size=64, seq_len=16)
