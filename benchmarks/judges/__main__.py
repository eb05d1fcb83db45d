"""A thousand scored texts at an endpoint that takes 50 ms: our client, and others that make the same calls.

The ideal is calls / concurrency x latency. `--rivals DIR` finds openai there; who is not here gets a row that says so.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch

from benchmarks.common.command import command_line
from benchmarks.common.environment import ForeignLoad, environment, version
from benchmarks.common.harness import cpu_clock, interleave, summarise
from benchmarks.common.records import Row, find, foreign_share, table, write_lines
from benchmarks.judges.clients import CLIENTS
from benchmarks.judges.service import ANSWER

BENCH = "judges"
_LIMIT = 1.15
_TEXT = "The river rose in spring and the workers of the town left their homes before the water came. " * 40


@contextmanager
def serving(seconds: float) -> Iterator[str]:
    """The endpoint's address while it runs."""
    command = [sys.executable, "-m", "benchmarks.judges.service", str(seconds)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield f"http://127.0.0.1:{int(process.stdout.readline())}/v1"
        process.kill()


def measure(endpoint: str, settings: dict[str, float | int]) -> list[Row]:
    """A row for each client; the answers of all are checked in the warm-up."""
    calls, concurrency = int(settings["calls"]), int(settings["concurrency"])
    rows, steps = [], {}
    for name, make in CLIENTS.items():
        row = Row(bench=BENCH, contender=name, passes=f"{calls} calls", computes="scores", status="not run")
        try:
            ask = make(endpoint, concurrency)
        except ImportError as error:
            rows.append(replace(row, reason=f"not here ({error})"))
            continue
        right = ask(["1"]) == [ANSWER]
        rows.append(replace(row, status="ok" if right else "wrong", reason=None if right else "other answers"))
        steps[name] = lambda turn, ask=ask: ask([f"{turn}.{call} {_TEXT}" for call in range(calls)])
    load = ForeignLoad()
    samples = interleave(steps, cpu_clock, rounds=int(settings["rounds"]), warmups=1)
    where = environment(torch.device("cpu")) | {"foreign_cpu_share": round(load.share(), 3)}
    where["versions"] = {name: found for name in ("urllib3", "httpx2", "openai") if (found := version(name))}
    timings = {name: summarise(taken) for name, taken in samples.items()}
    return [replace(row, timing=timings.get(row.contender), settings=settings, environment=where) for row in rows]


def of_ideal(rows: Sequence[Row], ideal: float) -> float | None:
    """Our time over the ideal one; None where ours is missing or wrong."""
    row = find(rows, "ours", rows[0].passes)
    return row.timing.median / ideal if row and row.right and row.timing else None


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, write. Returns 1 where ours is missing, wrong or too slow."""
    parser = command_line("judges", __doc__, "--output", "--rivals")
    for option, default, kind, about in (
        ("--calls", 1000, int, "texts to score"),
        ("--concurrency", 64, int, "calls under way"),
        ("--latency", 0.05, float, "seconds that the endpoint takes for one"),
        ("--rounds", 9, int, "timed turns of every client"),
    ):
        parser.add_argument(option, default=default, type=kind, help=f"{about} (default: %(default)s)")
    given = parser.parse_args(argv)
    sys.path += given.rivals
    settings = {name: getattr(given, name) for name in ("calls", "concurrency", "latency", "rounds")}
    with serving(given.latency) as endpoint:
        rows = measure(endpoint, settings)
    if given.output:
        write_lines(given.output, rows)
    ideal = given.calls / given.concurrency * given.latency
    figure, share = of_ideal(rows, ideal), foreign_share(rows)
    print(table(rows))
    print(f"ideal: {ideal * 1e3:.2f} ms")
    print("ours was not measured" if figure is None else f"ours: {figure:.2f}x the ideal; asked: {_LIMIT}x at most")
    # The service's own process is among these.
    print(f"other processes, the endpoint's with them, used {share:.0%} of the machine")
    return int(figure is None or figure > _LIMIT)


if __name__ == "__main__":
    sys.exit(main())
