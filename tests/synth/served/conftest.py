"""A server that answers as the bigram model of the job does, and one process to ask it."""

from collections.abc import Iterator

import pytest

from synpro_engine.dist import ParallelConfig, Topology, launched
from synpro_engine.remote import patience
from synpro_engine.remote import service as service_module
from tests.reward.judges.server import Server, serving
from tests.synth.served.job import answer


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(patience, "_FIRST_S", 0.01)
    monkeypatch.setattr(service_module, "_LOOK_S", 0.02)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with serving() as running:
        running.answer = answer
        running.listing = (200, {"data": [{"id": "bigram", "max_model_len": 4096}]})
        yield running


@pytest.fixture(scope="module")
def topology() -> Iterator[Topology]:
    with launched(ParallelConfig()) as topology:
        yield topology
