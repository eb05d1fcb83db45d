"""One process as a job of one, and tiny models of both families."""

from collections.abc import Iterator

import pytest

from synpro_engine.dist import ParallelConfig, Topology, launched
from synpro_engine.model.build import build_model
from synpro_engine.model.config import ModelConfig
from synpro_engine.model.model import Model


@pytest.fixture(scope="module")
def topology() -> Iterator[Topology]:
    with launched(ParallelConfig()) as here:
        yield here


@pytest.fixture(params=["olmo2", "llama"], scope="module")
def model(request: pytest.FixtureRequest, topology: Topology) -> Model:
    """Grouped heads, large weights (so that tokens differ clearly); Llama with tied embeddings."""
    config = ModelConfig(
        family=request.param, layers=3, d_model=48, heads=6, kv_heads=2, ffn=80, vocab_size=96, seq_len=128,
        rope_theta=1e4, tie_embeddings=request.param == "llama", init_std=0.2,
    )  # fmt: skip
    return build_model(config, topology, seed=3)
