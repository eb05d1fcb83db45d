"""Ranks that would ask the same, and jobs that are killed."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from synpro_engine.dist import ParallelConfig, Topology, launched, on_first
from synpro_engine.dist.testing import run_ranks
from synpro_engine.synth.ledger import read_commits
from tests.reward.judges.server import FAULTS, Handler, Server
from tests.synth.served.job import ITEMS, JOB, SCRIPT, all_made, answer, generator_of, producer_for, records_of


def _asks(endpoint: str) -> list[list[Any]]:
    """What a rank of a tensor-parallel group of two gets, and how many calls it made."""
    with launched(ParallelConfig(tp=2)) as topology:
        producer = JOB["served_producer"](endpoint=endpoint)
        generator = generator_of(producer)
        generator._share = lambda work: on_first(topology.tp, topology, work)
        return [producer.batch(ITEMS[:3]), [generator.service.counts["calls"]]]


def test_tensor_parallel_ranks_ask_once_and_have_the_same(server: Server) -> None:
    one, two = run_ranks(_asks, 2, endpoint=server.endpoint)
    assert one[0] == two[0] == producer_for(server).batch(ITEMS[:3])
    assert one[1] == [6] and two[1] == [0], "the second rank asks nothing"


@pytest.mark.slow
def test_ten_kills_neither_double_nor_lose_a_completion(server: Server, topology: Topology, tmp_path: Path) -> None:
    wanted = all_made(tmp_path / "wanted", producer_for(server), topology)
    rng = random.Random(4)
    quick = [fault for name, fault in FAULTS.items() if name not in ("slow", "byte by byte", "huge")]

    def unlucky(handler: Handler, body: dict[str, Any]) -> None:
        time.sleep(0.02)
        with handler.server.lock:
            fault = rng.choice(quick) if rng.random() < 0.1 else answer
        fault(handler, body)

    server.answer, out, work = unlucky, tmp_path / "corpus", tmp_path / "corpus.work"
    path = os.pathsep.join((str(Path(__file__).parents[3]), os.environ.get("PYTHONPATH", "")))
    command = [sys.executable, str(SCRIPT), str(out), "0", server.endpoint]
    for _ in range(10):
        done, calls = len(read_commits(work)) if work.exists() else 0, len(server.calls)
        process = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": path}, stderr=subprocess.PIPE, text=True)
        # In the middle of a batch, wherever in it, and mostly after one that this start has finished.
        upto = calls + rng.randint(5, 10)
        while len(server.calls) < upto:
            assert process.poll() is None, process.communicate()[1]
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert not out.exists() and done <= len(read_commits(work))
    assert subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, check=False).returncode == 0
    made = records_of(out)
    too_long = {record["id"].rpartition(":")[0] for record in made if record.get("reason") == "prompt_too_long"}
    places = [(o["source"], o["start"], o["end"], o["operation"], o["member"]) for o in (r["provenance"] for r in made)]
    assert len(places) == len(set(places)) and set(places) == {
        (item.slice.doc_id, item.slice.start, item.slice.end, item.operation, member)
        for item in ITEMS
        for member in range(1 if item.key in too_long else JOB["CONFIG"].samples)
    }
    assert made == wanted and not work.exists()
