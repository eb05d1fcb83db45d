"""What is known of a server before it is needed, and the wait for it."""

import threading

import pytest

from synpro_engine.config import UserError
from synpro_engine.config.errors import Stopped
from synpro_engine.synth.served import check_server, wait_for_server
from tests.reward.judges.server import FAULTS, Server
from tests.synth.served.job import generator_of, producer_for, server_config


def test_what_can_be_known_of_a_server_is_told_before_it_is_needed(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SERVER_KEY", raising=False)
    assert check_server(server_config(server.endpoint)) is None
    assert "does not answer" in str(check_server(server_config("http://127.0.0.1:9/v1")))  # it may come yet
    with pytest.raises(UserError, match=r"`generate\.server\.api_key_env`: .*SERVER_KEY is not set"):
        check_server(server_config(server.endpoint, api_key_env="SERVER_KEY"))
    with pytest.raises(UserError, match=r"`generate\.server\.endpoint`: .*no such host"):
        check_server(server_config("http://no-such-host.invalid:8000/v1"))
    server.listing = (401, {"error": "who are you?"})
    with pytest.raises(UserError, match=r"`generate\.server\.api_key_env`: .*without a valid API key"):
        check_server(server_config(server.endpoint))
    with pytest.raises(UserError, match="without /completions"):
        server_config(f"{server.endpoint}/completions")


def test_the_server_is_waited_for_until_it_has_the_model(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    from synpro_engine.synth.served import opening

    monkeypatch.setattr(opening, "_LOOK_S", 0.01)
    told, asked_to_stop = list[str](), threading.Event()

    def wait(model: str, context: int = 4096) -> None:
        generator = generator_of(producer_for(server, patience_s=0.05))
        generator.model, generator.service.asked_to_stop = model, asked_to_stop.is_set
        wait_for_server(generator, least_context=context, tell=told.append)

    wait("bigram")
    assert not told
    with pytest.raises(UserError, match=r"`generate\.server\.endpoint`: .* does not serve `rephrase-1-abc` after"):
        wait("rephrase-1-abc")
    assert told == [f"waiting for {server.endpoint} to serve `rephrase-1-abc` (it serves 'bigram')"]
    with pytest.raises(UserError, match=r"context of 4096 tokens.*need 4097"):
        wait("bigram", 4097)
    server.listing = (500, {"error": "no list"})
    wait("another")  # it answers, and that will do
    server.answer = FAULTS["500"]
    asked_to_stop.set()
    with pytest.raises(Stopped):
        wait("another")
