"""End to end: groups of texts through our scorer in memory, and through a per-text service (`service.py`).

Knows requests and the life of the service's process; what it computes is its own affair, and is compared text by text
before anything is timed.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import subprocess
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import psutil

from benchmarks.common import processes
from benchmarks.common.harness import Step
from benchmarks.influence_cost.group import Group, group_steps, in_pairs
from benchmarks.influence_cost.records import CostRow, differing, take_turns
from benchmarks.influence_cost.setup import Bench
from synpro_engine.influence import TextInfluence, TwoForwardInfluence

OURS, PACKED, LATER, RIVAL = "in memory", "in memory, packed", "in memory, sources known", "a service, text by text"
TOLERANCE = 1e-5
TIMEOUT = 120.0
"""Seconds that a request may take."""


class Client:
    """Sends texts to the service, several at once, each thread over a connection of its own."""

    def __init__(self, port: int, clients: int) -> None:
        self._port, self._own = port, threading.local()
        self._threads = ThreadPoolExecutor(clients)

    def __call__(self, texts: Sequence[str]) -> list[float]:
        """The influence of each text. Raises RuntimeError where the service refuses one."""
        return list(self._threads.map(self._ask, texts))

    def _ask(self, text: str) -> float:
        if not hasattr(self._own, "connection"):
            self._own.connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=TIMEOUT)
        connection: http.client.HTTPConnection = self._own.connection
        body = json.dumps({"text": text})
        connection.request("POST", "/influence", body, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        content = answer.read()
        if answer.status != 200:
            raise RuntimeError(f"the service answered {answer.status}")
        return float(json.loads(content)["influence"])

    def close(self) -> None:
        """End the threads, and with them their connections."""
        self._threads.shutdown()


@dataclass(frozen=True, kw_only=True)
class Service:
    """A running service."""

    port: int
    ask: Client
    process: psutil.Process

    def cpu_seconds(self) -> float:
        """What its process has used so far."""
        times = self.process.cpu_times()
        return times.user + times.system


@contextlib.contextmanager
def service(bench: Bench) -> Iterator[Service]:
    """The service on `bench`'s models for the length of a block. RuntimeError where it does not start."""
    process = subprocess.Popen(
        processes.command("benchmarks.influence_cost.service", str(bench.folder)),
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        env=processes.variables({"OMP_NUM_THREADS": str(bench.settings.threads)}),
    )  # fmt: skip
    with process:  # at its end the pipes are closed, which ends the service, and it is waited for
        assert process.stdout is not None
        port = process.stdout.readline().strip()
        if not port.isdigit():
            raise RuntimeError("the service did not start")
        ask = Client(int(port), bench.settings.clients)
        try:
            yield Service(port=int(port), ask=ask, process=psutil.Process(process.pid))
        finally:
            ask.close()


def scorer(bench: Bench, *, packed: bool = False) -> TextInfluence:
    """Ours, knowing no text yet."""
    influence = TwoForwardInfluence(
        bench.theta, bench.probe, start_id=bench.start_id, micro_batch=bench.settings.text_batch, packed=packed
    )
    return TextInfluence(influence, bench.tokenizer.encode, same_tokenizer=True)


def ours(score: TextInfluence, groups: Sequence[Group]) -> list[float]:
    """Influence of each completion and its source, in turns, from one call that gets every text once."""
    pairs = in_pairs(groups)
    texts = list(dict.fromkeys(pairs))
    of = dict(zip(texts, score(texts), strict=True))
    return [of[text] for text in pairs]


def measure(bench: Bench) -> list[CostRow]:
    """One step of GRPO whose sources are new, and one whose sources an earlier step had."""
    groups, settings = group_steps(bench)[0], bench.settings
    pairs = in_pairs(groups)
    with service(bench) as rival:
        theirs = rival.ask(pairs)
        scorers = {OURS: scorer(bench), PACKED: scorer(bench, packed=True), LATER: knowing(bench, groups)}
        wrong = {name: differing(ours(own, groups), theirs, TOLERANCE) for name, own in scorers.items()}
        # A scorer remembers what it was asked: each turn takes one that has not seen the completions.
        ready = iter([knowing(bench, groups) for _ in range(settings.rounds + settings.warmups)])
        steps: dict[str, Step] = {
            OURS: lambda _turn: ours(scorer(bench), groups),
            PACKED: lambda _turn: ours(scorer(bench, packed=True), groups),
            LATER: lambda _turn: ours(next(ready), groups),
            RIVAL: lambda _turn: rival.ask(pairs),
        }
        turns = take_turns(bench, "service", steps, companion=rival.cpu_seconds)
    size, what = settings.group, _described(bench, pairs)
    forwards = {OURS: 2 * size / (size + 1), PACKED: 2 * size / (size + 1), LATER: 2.0}
    limits = {OURS: 3.0}
    return [
        turns.row(
            name, RIVAL, what, wrong=wrong[name], at_least=True, limit=limits.get(name), arithmetic=forwards[name]
        )
        for name in (OURS, PACKED, LATER)
    ]


def _described(bench: Bench, pairs: Sequence[str]) -> str:
    settings, lengths = bench.settings, sorted(len(bench.tokenizer.encode(text)) for text in {*pairs})
    return (
        f"{settings.sources} sources with {settings.group} completions each, texts of {lengths[0]} to {lengths[-1]} "
        f"tokens; {settings.clients} requests at once"
    )


def knowing(bench: Bench, groups: Sequence[Group]) -> TextInfluence:
    """Ours, after a step with the same sources."""
    found = scorer(bench)
    found([group.source for group in groups])
    return found
