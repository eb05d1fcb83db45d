"""An endpoint that misbehaves: never a value for what was not answered, least of all 0, and no more calls than due."""

import math
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from synpro_engine.config.errors import Stopped, UserError
from synpro_engine.remote import endpoint as endpoint_module
from synpro_engine.synth import REPHRASE, Candidate
from tests.reward.judges.server import FAULTS, SECRET, client, slow, texts

GARBAGE = {name: FAULTS[name] for name in ("huge", "no JSON", "half a JSON", "empty", "nested")}
"""Whole answers of HTTP that are none of JSON."""
UNREADABLE: dict[str, Callable[[Any, Any], None]] = {
    "wrong schema": lambda handler, body: handler.send(200, {"result": 4}),
    "no choice": lambda handler, body: handler.send(200, {"choices": []}),
    "no text": lambda handler, body: handler.send(200, {"choices": [{"message": {"content": None}}]}),
    "a number": lambda handler, body: handler.send(200, {"choices": [{"message": {"content": 4}}]}),
    "empty text": lambda handler, body: handler.write(""),
    "chatter": lambda handler, body: handler.write("I would say that this is a 4 or a 5, all in all."),
    "out of scale": lambda handler, body: handler.write("0"),
    "NaN": lambda handler, body: handler.write("nan"),
    **GARBAGE,
}


@pytest.mark.parametrize("name", [name for name in FAULTS if name not in GARBAGE])
def test_a_fault_is_asked_again_and_then_missing_and_never_shows_the_key(
    server: Any, name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("JUDGE_KEY", SECRET)
    server.answer = FAULTS[name]
    config = server.judge(api_key_env="JUDGE_KEY", timeout_s=0.3, tries=3)
    asking = client(config, cache=tmp_path / "cache")
    [value] = asking.values(texts("A text."))
    assert math.isnan(value)
    assert (
        asking.service.counts["calls"] == asking.service.counts["faults"] == 3 and asking.service.counts["missing"] == 1
    )
    assert 1 <= len(server.calls) <= 3  # on a busy machine a call may be given up before the server has looked at it
    assert server.calls[0][2]["authorization"] == f"Bearer {SECRET}"
    said = capfd.readouterr()
    kept = "".join(path.read_text() for path in tmp_path.rglob("*.jsonl"))
    assert SECRET not in said.out + said.err + kept + asking.service.breaker.reason + repr(config)
    assert asking.service.breaker.reason


@pytest.mark.parametrize("name", UNREADABLE)
def test_what_cannot_be_read_is_asked_again_and_then_missing(
    server: Any, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(endpoint_module, "_MAX_BYTES", 200_000)
    server.answer = UNREADABLE[name]
    asking = client(server.judge(unreadable_tries=2), cache=tmp_path)
    assert math.isnan(asking.values(texts("A text."))[0])
    assert len(server.calls) == 2 == asking.service.counts["unreadable"] and asking.service.counts["faults"] == 0
    first, second = (body["messages"][0]["content"] for _, body, _, _ in server.calls)
    assert second.startswith(first) and (second != first) == (name not in GARBAGE)
    server.answer = lambda handler, body: handler.write("2")
    assert asking.values(texts("A text.")) == [2.0], "what was missing is asked for again"


def test_a_refused_question_is_not_asked_again_and_told_once(server: Any, capfd: pytest.CaptureFixture[str]) -> None:
    server.answer = lambda handler, body: handler.send(400, {"error": {"message": "longer than the context"}})
    asking = client(server.judge(outage="wait"))
    assert all(math.isnan(value) for value in asking.values(texts("A text.", "Another.")))
    assert len(server.calls) == 2 and asking.service.counts["refused"] == 2
    assert capfd.readouterr().err.count("longer than the context") == 1


def test_one_missing_answer_is_told_and_spoils_no_other(server: Any, capfd: pytest.CaptureFixture[str]) -> None:
    def answer(handler: Any, body: Any) -> None:
        handler.send(500, b"") if "Bad" in body["messages"][0]["content"] else handler.write("5")

    server.answer = answer
    values = client(server.judge()).values(texts("One.", "Bad.", "Two.", "Three."))
    assert [values[0], *values[2:]] == [5.0] * 3 and math.isnan(values[1])
    assert "`reward.judges.quality`: 1 of 4 values are missing (latest fault: HTTP 500)" in capfd.readouterr().err
    judge = server.reward("quality")
    asked = [
        Candidate(operation="rephrase", source=source, raw="", parsed=REPHRASE.parse(f"{REPHRASE.heading}\n{text}"))
        for text, source in (("A text of some words, said well.", "Bad."), ("A text of some words, said well.", "One."))
    ]
    by_source = judge(asked)
    assert math.isnan(by_source[0]) and by_source[1] == 0.0


@pytest.mark.parametrize("name", ["500", "502 of a gateway", "403 of a filter", *GARBAGE])
def test_a_question_that_a_sound_server_always_fails_at_is_missing_and_holds_up_no_step(
    server: Any, name: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(endpoint_module, "_MAX_BYTES", 200_000)

    def answer(handler: Any, body: Any) -> None:
        FAULTS[name](handler, body) if "Bad" in body["messages"][0]["content"] else handler.write("5")

    server.answer, end = answer, time.monotonic() + 5.0
    patient = server.judge(outage="wait", tries=2)
    for others in ([], ["One.", "Two."]):  # after a restart the others are known, and the question alone is asked
        asking = client(patient, asked_to_stop=lambda: time.monotonic() > end)
        *values, bad = asking.values(texts(*others, "Bad."))
        assert values == [5.0] * len(others) and math.isnan(bad)
        assert asking.service.counts["refused"] == asking.service.counts["missing"] == 1
        assert asking.service.counts["calls"] == len(others) + 4 + 1, "one more to see that the server is well"
    assert capfd.readouterr().err.count("a question was refused") == 2


def test_retry_after_is_honoured_by_all_calls(server: Any) -> None:
    begun = []

    def answer(handler: Any, body: Any) -> None:
        begun.append(time.monotonic())
        handler.send(429, b"", retry_after="1") if len(begun) == 1 else handler.write("3")

    server.answer = answer
    asking = client(server.judge(concurrency=1))
    assert asking.values(texts("One.", "Two.")) == [3.0, 3.0]
    assert len(begun) == 3 and begun[1] - begun[0] >= 0.95


@pytest.mark.parametrize(
    ("header", "low", "high"),
    [
        ("7", 7, 7), ("0.5", 0.5, 0.5), (None, 0, 0), ("-3", 0, 0), ("nan", 0, 0), ("1e12", 900, 900), ("soon", 0, 0),
        ("Fri, 31 Dec 1999 23:59:59 GMT", 0, 0), ("Fri, 31 Dec 9998 23:59:59 GMT", 900, 900),
    ],
)  # fmt: skip
def test_every_form_of_retry_after_gives_a_pause_that_ends(header: str | None, low: float, high: float) -> None:
    assert low <= endpoint_module._retry_after_s(header) <= high


def test_a_step_ends_at_its_deadline_though_calls_are_under_way(server: Any) -> None:
    server.answer = slow
    asking = client(server.judge(timeout_s=30.0, tries=100, deadline_s=0.5))
    begun = time.monotonic()
    values = asking.values(texts(*(f"Text {i}." for i in range(8))))
    assert all(map(math.isnan, values)) and time.monotonic() - begun < 2.0


def test_a_service_that_is_down_is_left_alone(server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    server.answer = FAULTS["500"]
    config = server.judge(concurrency=4, tries=1000, deadline_s=1.0)
    asking = client(config)
    begun = time.monotonic()
    assert all(map(math.isnan, asking.values(texts(*(f"Text {i}." for i in range(200))))))
    # Eight to find out, those that were under way, and one now and then.
    assert len(server.calls) < 30
    calls = asking.service.counts["calls"]  # the server may hear some of those that were under way only now
    assert all(map(math.isnan, asking.values(texts("One more."))))
    assert time.monotonic() - begun < 4.0 and asking.service.counts["calls"] - calls <= 1, (
        "the next step does not wait as long again"
    )


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("500", "HTTP 500"),
        ("no JSON", "its answer is no JSON"),
        ("no credit", "HTTP 402: Insufficient Balance"),
        ("no proxy", "HTTP 407"),
    ],
)
def test_waiting_goes_on_until_the_endpoint_is_back_and_says_so(
    server: Any, name: str, reason: str, capfd: pytest.CaptureFixture[str]
) -> None:
    server.answer = FAULTS[name]
    threading.Timer(1.0, lambda: setattr(server, "answer", lambda handler, body: handler.write("4"))).start()
    asking = client(server.judge(outage="wait", tries=1, unreadable_tries=1, deadline_s=0.1), tell_every_s=0.3)
    assert asking.values(texts("A text.", "Another.")) == [4.0, 4.0]
    assert (
        asking.service.counts["missing"] == 0 < asking.service.counts["unreadable" if name == "no JSON" else "faults"]
    )
    told = [line for line in capfd.readouterr().err.splitlines() if "`reward.judges.quality.endpoint`" in line]
    assert 1 <= len(told) <= 8 and reason in told[0] and "waiting" in told[0]


def test_a_wish_to_stop_ends_waiting_but_no_step_that_goes_well(server: Any) -> None:
    asking = client(server.judge(outage="wait"), asked_to_stop=lambda: True)
    assert asking.values(texts("A text.")) == [4.0]
    server.answer = FAULTS["500"]
    with pytest.raises(Stopped, match=r"`reward.judges.quality.endpoint`: http://127.0.0.1:\d+/v1 did not answer"):
        asking.values(texts("Another."))


@pytest.mark.parametrize("form", ["http://{}", "{}", "http://me:a%40b@{}"])
def test_a_proxy_is_asked_with_its_own_credentials_alone(
    server: Any, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The server stands in for the proxy: the name of the judge's host is known to nobody else.
    monkeypatch.setenv("http_proxy", form.format(f"127.0.0.1:{server.server_address[1]}"))
    asking = client(server.judge(endpoint="http://judges.invalid/v1"))
    assert asking.values(texts("A text.")) == [4.0]
    path, _, headers, _ = server.calls[0]
    assert path.startswith("http://judges.invalid/v1/")
    assert headers.get("proxy-authorization") == ("Basic bWU6YUBi" if "me:" in form else None)  # me:a@b


@pytest.mark.parametrize("proxy", ["socks5h://me:secret@127.0.0.1:1", "http://me:secret@[127.0.0.1"])
def test_a_proxy_that_is_none_of_http_is_told_without_its_password(
    server: Any, proxy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", proxy)
    with pytest.raises(UserError, match="the environment variable http_proxy") as caught:
        client(server.judge(endpoint="http://judges.invalid/v1"))
    assert "secret" not in str(caught.value)


def test_a_key_that_is_not_there_is_named(server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("JUDGE_KEY", raising=False)
    with pytest.raises(UserError, match=r"`reward.judges.quality.api_key_env`: .* JUDGE_KEY is not set"):
        client(server.judge(api_key_env="JUDGE_KEY"))
    monkeypatch.setenv("JUDGE_KEY", f"{SECRET}\nHost: other")
    with pytest.raises(UserError) as caught:
        client(server.judge(api_key_env="JUDGE_KEY"))
    assert SECRET not in str(caught.value)


def test_no_question_is_asked_twice_in_or_after_the_process_that_asked_it(server: Any, tmp_path: Path) -> None:
    pairs = texts("A text.", "Another.", "A text.")
    first = client(server.judge(), cache=tmp_path)
    beside = client(server.judge(), cache=tmp_path)
    assert first.values(pairs) == [4.0] * 3 and len(server.calls) == 2
    assert beside.values(pairs) == [4.0] * 3 and len(server.calls) == 2, "another process reads on"
    [file] = (tmp_path / "quality").glob("*.jsonl")
    with file.open("ab") as torn:
        torn.write(b'{"key": "00", "val')
    assert client(server.judge(), cache=tmp_path).values(pairs) == [4.0] * 3
    assert len(server.calls) == 2
    others = [{"model": "judge-2"}, {"prompt": "Rate {text}"}, {"request": {"temperature": 0.5}}, {"cache": False}]
    for number, other in enumerate(others, 3):
        config = server.judge(**other)
        client(config, cache=tmp_path).values(texts("A text."))
        assert len(server.calls) == number, other


def test_answers_outlive_a_process_that_is_killed(server: Any, tmp_path: Path) -> None:
    code = f"""
        from pathlib import Path
        from synpro_engine.reward.judges import Client, JudgeConfig, Judgement
        config = JudgeConfig(endpoint={server.endpoint!r}, model="judge-1", concurrency=4, api="chat")
        client = Client({{"quality": config}}, "chat", cache=Path({str(tmp_path)!r}))
        client.values([Judgement("quality", "", f"Text {{i}}.") for i in range(10_000)])
    """
    process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)], env=os.environ)
    while len(server.calls) < 200:
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    asked = len(server.calls)
    kept = client(server.judge(), cache=tmp_path)
    assert kept.values(texts(*(f"Text {i}." for i in range(100)))) == [4.0] * 100
    assert len(server.calls) - asked <= 4, "only what was under way is asked again"
