"""A running server for each test, and patience that does not take minutes."""

from collections.abc import Iterator

import pytest

from synpro_engine.remote import patience
from synpro_engine.remote import service as service_module
from tests.reward.judges.server import Server, serving


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(patience, "_FIRST_S", 0.01)
    monkeypatch.setattr(service_module, "_LOOK_S", 0.02)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY", "no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with serving() as running:
        yield running
