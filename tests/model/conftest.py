"""One process as a job of one, for tests that need no second rank."""

from collections.abc import Iterator

import pytest

from synpro_engine.dist import ParallelConfig, Topology, launched
from synpro_engine.model.config import ModelConfig


@pytest.fixture(scope="module")
def topology() -> Iterator[Topology]:
    with launched(ParallelConfig()) as here:
        yield here


@pytest.fixture(params=["olmo2", "llama"])
def config(request: pytest.FixtureRequest) -> ModelConfig:
    """A tiny shape with grouped heads; Llama with tied embeddings."""
    return ModelConfig(
        family=request.param, layers=3, d_model=48, heads=6, kv_heads=2, ffn=80, vocab_size=96, seq_len=64,
        rope_theta=1e4, tie_embeddings=request.param == "llama", init_std=0.1,
    )  # fmt: skip
