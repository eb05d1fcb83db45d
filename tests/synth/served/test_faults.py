"""Whatever a server does, the corpus is whole, and never what was not asked for."""

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from synpro_engine.config import UserError
from synpro_engine.config.errors import Stopped
from synpro_engine.dist import Topology
from synpro_engine.remote import endpoint as endpoint_module
from synpro_engine.synth.ledger import read_commits
from tests.reward.judges.server import FAULTS, SECRET, Handler, Server
from tests.synth.served.job import ITEMS, all_made, answer, generator_of, producer_for, written


def test_whatever_goes_wrong_on_the_way_the_corpus_is_the_same(
    server: Server, topology: Topology, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(endpoint_module, "_MAX_BYTES", 200_000)
    wanted = all_made(tmp_path / "wanted", producer_for(server), topology)
    turn, faults = itertools.count(), itertools.cycle(FAULTS.values())

    def misbehave(handler: Handler, body: dict[str, Any]) -> None:
        fault = next(faults) if next(turn) % 3 == 0 else answer
        fault(handler, body)

    server.answer = misbehave
    assert all_made(tmp_path / "corpus", producer_for(server, timeout_s=0.5, concurrency=4), topology) == wanted


def _with(change: Callable[[dict[str, Any]], Any]) -> Callable[[Handler, dict[str, Any]], None]:
    def say(handler: Handler, body: dict[str, Any]) -> None:
        reply = written(body)
        change(reply["choices"][0])
        handler.send(200, reply)

    return say


USELESS: dict[str, Callable[[Handler, dict[str, Any]], None]] = {
    "wrong schema": lambda handler, body: handler.send(200, {"result": "text"}),
    "no choice": lambda handler, body: handler.send(200, {"choices": []}),
    "aborted": _with(lambda choice: choice.update(finish_reason="abort")),
    "filtered": _with(lambda choice: choice.update(finish_reason="content_filter")),
    "no end": _with(lambda choice: choice.update(finish_reason=None)),
    "no text": _with(lambda choice: choice.update(text=None)),
    "words for ids": _with(lambda choice: choice.update(token_ids=["a"])),
    "no ids at all": _with(lambda choice: choice.update(token_ids=[], finish_reason="length")),
    "ids of another vocabulary": _with(lambda choice: choice["token_ids"].insert(0, 10_000)),
    "cut short": _with(lambda choice: choice.update(token_ids=choice["token_ids"][:3], finish_reason="length")),
    "on behind its end": _with(lambda choice: choice["token_ids"].insert(1, 258)),
    "too long": _with(lambda choice: choice.update(token_ids=[65] * 70)),
}


@pytest.mark.parametrize("kind", USELESS)
def test_an_answer_of_no_use_is_asked_for_again_with_another_seed(kind: str, server: Server) -> None:
    turn, producer = itertools.count(), producer_for(server, concurrency=1)
    server.answer = lambda handler, body: (answer if next(turn) else USELESS[kind])(handler, body)
    first, second = producer.batch(ITEMS[:1])
    assert len(server.calls) == 3 and server.calls[0][1]["seed"] != server.calls[1][1]["seed"]
    assert first["completion_tokens"] > 0 and second["completion_tokens"] > 0


@pytest.mark.parametrize("kind", USELESS)
def test_a_server_that_is_of_no_use_ends_the_generation_and_nothing_is_recorded(
    kind: str, server: Server, topology: Topology, tmp_path: Path
) -> None:
    server.answer = USELESS[kind]
    with pytest.raises(UserError, match=r"`generate\.server`: an answer of http://127.* is of no use: its? "):
        all_made(tmp_path / "corpus", producer_for(server), topology)
    assert not (tmp_path / "corpus").exists() and not read_commits(tmp_path / "corpus.work")


def test_an_outage_that_is_not_waited_for_ends_in_one_line_and_a_new_start_goes_on(
    server: Server, topology: Topology, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    monkeypatch.setenv("SERVER_KEY", SECRET)
    wanted, turn = all_made(tmp_path / "wanted", producer_for(server), topology), itertools.count()

    def half(handler: Handler, body: dict[str, Any]) -> None:
        (answer if next(turn) < 20 else FAULTS["500"])(handler, body)

    server.answer = half
    impatient = producer_for(server, outage="give_up", tries=2, concurrency=2, api_key_env="SERVER_KEY")
    with pytest.raises(UserError, match=r"`generate\.server\.endpoint`: http.* does not answer .*what is done is kept"):
        all_made(tmp_path / "corpus", impatient, topology)
    kept = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    said = capfd.readouterr()
    assert server.calls[-1][2]["authorization"] == f"Bearer {SECRET}"
    assert SECRET not in said.out + said.err and SECRET.encode() not in kept
    done, calls = len(read_commits(tmp_path / "corpus.work")), len(server.calls)
    assert 0 < done < 12
    server.answer = answer
    # Another address, key and patience are no other settings.
    assert all_made(tmp_path / "corpus", producer_for(server), topology) == wanted
    assert 0 < len(server.calls) - calls < len(wanted) - 3 * done


def test_a_prompt_that_is_refused_for_good_ends_the_generation(
    server: Server, topology: Topology, tmp_path: Path
) -> None:
    server.answer = lambda handler, body: handler.send(400, {"error": {"message": "prompt must be a string"}})
    with pytest.raises(UserError, match=r"`generate\.server`: .*refuses a prompt \(HTTP 400: prompt must be a string"):
        all_made(tmp_path / "corpus", producer_for(server), topology)


def test_a_prompt_that_a_sound_server_always_fails_at_ends_the_generation(server: Server) -> None:
    def fail(handler: Handler, body: dict[str, Any]) -> None:
        (answer if body["max_tokens"] == 1 else FAULTS["500"])(handler, body)

    server.answer = fail
    producer = producer_for(server, tries=1)
    generator_of(producer).service.asked_to_stop = lambda: len(server.calls) > 6
    with pytest.raises(UserError, match=r"`generate\.server`: .*refuses a prompt \(HTTP 500: .*what is done is kept"):
        producer.batch(ITEMS[:1])


def test_an_outage_is_waited_for_until_the_job_is_to_stop(server: Server) -> None:
    server.answer = FAULTS["500"]
    producer = producer_for(server)
    generator_of(producer).service.asked_to_stop = lambda: len(server.calls) > 3
    with pytest.raises(Stopped, match=r"`generate\.server\.endpoint`"):
        producer.batch(ITEMS[:1])
