"""What tuned decay, Muon, dropout, averaging, ensembles and distillation are worth where real text is repeated.

`python -m benchmarks.data_bound` tunes and trains every arm by the engine's own commands (`synpro sweep`, `pretrain`,
`ensemble`), some hours on two cores; called again it goes on where it was. `--from FILE` takes committed records in
place of runs; `--docs docs` renews the tables and the picture of docs/data-bound.md.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.common.command import command_line, picked
from benchmarks.common.documents import renew
from benchmarks.common.environment import environment
from benchmarks.common.records import read_lines, write_lines
from benchmarks.data_bound.arms import ARMS, SWEEPS
from benchmarks.data_bound.page import blocks, draw
from benchmarks.data_bound.runs import ensembles, sweep, train

Record = Mapping[str, Any]


def jobs(arms: Sequence[str]) -> Iterator[tuple[str, int]]:
    """Arm and seed of each training: the first seed of every arm before the second of any, and students last."""
    places = [(ARMS[name].teachers is not None, place, name) for name in arms for place in range(len(ARMS[name].seeds))]
    yield from ((name, ARMS[name].seeds[place]) for _, place, name in sorted(places, key=lambda one: one[:2]))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns the exit status."""
    parser = command_line("data_bound", __doc__, "--docs", "--output")
    parser.add_argument("--dir", type=Path, default=Path("runs/data-bound"), help="of the runs")
    parser.add_argument("--arms", default=",".join(ARMS), metavar="NAMES", help=f"of {', '.join(ARMS)}")
    parser.add_argument("--from", dest="given", type=Path, metavar="FILE", help="records to show, in place of runs")
    given = parser.parse_args(arguments)
    names = picked(parser, "--arms", given.arms, ARMS)
    records = read_lines(given.given) if given.given else []
    if not given.given:
        output = given.output or given.dir / "records.jsonl"
        for record in missing(given.dir, names, read_lines(output) if output.exists() else []):
            write_lines(output, [{**record, "environment": environment(torch.device("cpu"))}])
        records = read_lines(output)
    tables = blocks(records)
    print("\n\n".join(tables.values()))
    if given.docs:
        renew(given.docs / "data-bound.md", tables)
        draw(records, given.docs / "images" / "data_bound.png")
    return 0


def missing(place: Path, names: Sequence[str], known: Sequence[Record]) -> Iterator[Record]:
    """What is not among the records that are there, made one after the other."""
    swept = {record["sweep"]: record for record in known if record["bench"] == "data_bound_sweep"}
    trained = {(record["arm"], record["seed"]) for record in known if record["bench"] == "data_bound"}
    for name in SWEEPS:
        if name not in swept and any(ARMS[arm].sweep == name for arm in names):
            swept[name] = sweep(place, name)
            yield swept[name]
    for name, seed in jobs(names):
        if (name, seed) not in trained:
            yield train(place, name, seed, swept)
    if "all" in names and not any(record["bench"] == "data_bound_ensemble" for record in known):
        yield from ensembles(place)


if __name__ == "__main__":
    sys.exit(main())
