"""A server of which three in ten answers are of no use: no reward differs by it, none is missing, no group is lost."""

import random
import threading
import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from synpro_engine.reward import Composer
from synpro_engine.train.metrics import read_metrics
from tests.reward.judges.misbehaving import PACKED, SOURCE, Misbehaving, decide, entries, packed, rephrased, write
from tests.reward.judges.server import SECRET, Server, client, serving, texts
from tests.reward.judges.test_in_training import tune_toy

APIS = ("systemone", "decisions", "chat")
WEIGHTS = {
    "rephrase": dict.fromkeys(("quality", "structure", "similarity"), 1.0),
    "reformat": {"faithfulness": 1.0},
}


@pytest.fixture
def other() -> Iterator[Server]:
    """Where redirects lead."""
    with serving() as running:
        yield running


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("synpro_engine.remote.endpoint._MAX_BYTES", 200_000)
    monkeypatch.setattr("synpro_engine.remote.service._TOLD_EVERY_S", 1e9)
    monkeypatch.setenv("JUDGE_KEY", SECRET)


@pytest.mark.parametrize("api", APIS)
def test_a_server_that_misbehaves_in_three_of_ten_answers_changes_no_reward_and_loses_none(
    server: Any, other: Server, api: str
) -> None:
    settings = {"api": api, "outage": "wait", "timeout_s": 0.6, "concurrency": 8, "api_key_env": "JUDGE_KEY"}
    count = 24 if api == "chat" else 40  # written answers are asked for one by one
    candidates = [
        *(rephrased(f"The river rose {n} times, and the town was left by its workers.", f"{SOURCE} {n // 4}")
          for n in range(count)),
        *(entries(1 + n % 8, n, f"{SOURCE} {n // 4}") for n in range(count)),
    ]  # fmt: skip

    def scored() -> Any:
        judges = server.rewards("quality", "structure", "similarity", "faithfulness", **settings)
        return Composer(judges, WEIGHTS).score(candidates)

    server.answer = write if api == "chat" else decide
    expected = scored()
    assert len(set(expected.total)) > count, "the answers differ"
    asked = len(server.calls)
    server.answer = misbehaving = Misbehaving(api, other, seed=1)
    found = scored()
    assert found.total == expected.total and found.parts == expected.parts and not found.faults
    assert found.asked.items() >= {(name, 0) for name in found.asked if name.endswith("/missing")}
    assert misbehaving.share > 0.25 and len(misbehaving.told) > 0.8 * len(misbehaving.kinds)
    assert len(server.calls) - asked < 2 * asked
    assert not other.calls and not other.gets, "a redirect is not followed, and takes no key elsewhere"


@pytest.mark.parametrize("api", APIS)
def test_tuning_learns_the_same_from_a_server_that_misbehaves_and_drops_no_group(
    server: Any, other: Server, api: str, tmp_path: Path
) -> None:
    def steps(name: str, answer: Any) -> list[Any]:
        server.answer = answer
        tune_toy(server.endpoint, tmp_path / name, outage="wait", api=api, timeout_s=0.6, concurrency=4)
        return [r for r in read_metrics(tmp_path / name / "metrics.jsonl") if r["kind"] == "tune"]

    misbehaving = Misbehaving(api, other, seed=2)
    sound = steps("sound", misbehaving.right)
    found = steps("misbehaving", misbehaving)
    same = ("reward", "reward/quality", "reward_std", "loss", "grad_norm", "kl")
    assert [[step[name] for name in same] for step in found] == [[step[name] for name in same] for step in sound]
    assert all(step["dropped_groups"] == 0 and step["judge/quality/missing"] == 0 for step in found)
    assert misbehaving.share > 0.2 and sum(step["judge/quality/faults"] for step in found) > 0


@pytest.mark.parametrize("encoding", PACKED)
def test_a_reply_that_unpacks_to_much_is_cut_off_and_never_held_whole(server: Any, encoding: str) -> None:
    server.answer = lambda handler, body: packed(handler, body, encoding, PACKED[encoding])
    asking = client(server.judge(tries=1))
    tracemalloc.start()
    try:
        [value] = asking.values(texts("A text."))
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert value != value and "longer than 200000 bytes" in asking.service.breaker.reason
    assert most < 4 * 2**20, "of 8 MiB"


def test_a_server_that_is_restarted_while_it_is_asked_changes_no_reward(server: Any) -> None:
    """Between the two nobody listens at its port: connections are refused."""
    asked = texts(*(f"Text {n}." for n in range(60)))
    server.answer = write
    settings = {"outage": "wait", "concurrency": 4}
    expected = client(server.judge(**settings)).values(asked)
    draw, port = random.Random(3), server.server_address[1]
    replies, gone, again = [0], threading.Event(), list[Server]()

    def answer(handler: Any, body: Any) -> None:
        replies[0] += 1
        if replies[0] == 20:
            gone.set()
        time.sleep(0.01 * draw.random())
        write(handler, body)
        handler.close_connection = gone.is_set()  # or its thread would outlive the server

    def restart() -> None:
        gone.wait()
        server.shutdown()
        server.server_close()
        time.sleep(0.5)
        again.append(Server(port))
        again[0].answer = write
        again[0].serve_forever(poll_interval=0.02)

    server.answer = answer
    thread = threading.Thread(target=restart, daemon=True)
    thread.start()
    asking = client(server.judge(**settings))
    assert asking.values(asked) == expected
    again[0].shutdown()
    again[0].server_close()
    thread.join()
    assert asking.service.counts["faults"] > 0 and asking.service.counts["missing"] == 0
