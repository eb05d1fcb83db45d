"""What influence costs: two_forward, dot, in-run scores, groups, and against a service, as ratios within one run.

`python -m benchmarks.influence_cost` takes about eight minutes on one core. Every part checks scores before it times
anything; a row whose scores are wrong has no ratio. This file is the command: options, order, output.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

import synpro_engine  # noqa: F401 - first: it prepares Megatron's import
from benchmarks.common.against import Earlier, is_commit, told, with_commit
from benchmarks.common.command import again, command_line, picked
from benchmarks.common.documents import renew
from benchmarks.common.environment import QUIET, environment
from benchmarks.common.processes import alone
from benchmarks.common.records import foreign_share, write_lines
from benchmarks.influence_cost import group, http, in_run, scoring
from benchmarks.influence_cost.records import BENCH, CostRow, table
from benchmarks.influence_cost.setup import Bench, CostSettings, set_up
from synpro_engine.config import UserError
from synpro_engine.dist import ParallelConfig, Topology, launched, say

PARTS: dict[str, Callable[[Bench], list[CostRow]]] = {
    "scoring": scoring.measure,
    "packing": scoring.measure_packing,
    "in-run": in_run.measure,
    "group": group.measure,
    "service": http.measure,
}


def parser() -> argparse.ArgumentParser:
    """The command line."""
    found = command_line("influence_cost", __doc__, "--output", "--docs", "--set", "--against", "--turns")
    add, defaults = found.add_argument, CostSettings()
    add("--repeats", type=int, default=defaults.rounds, help="timed turns of every contender (default: %(default)s)")
    add("--threads", type=int, default=defaults.threads, help="CPU threads of a process (default: %(default)s)")
    add("--parts", default=",".join(PARTS), help="default: %(default)s")
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, write. Returns 1 where scores are wrong or ours is slower, 2 after a user's fault."""
    command = parser()
    given = command.parse_args(argv)
    parts = picked(command, "--parts", given.parts, PARTS)
    try:
        if is_commit(given.against):
            same = again(argv)
            return told(with_commit(given.against, "benchmarks.influence_cost", same, figures, turns=given.turns))
        earlier = Earlier.read(given.against)
        settings = CostSettings.read({"rounds": given.repeats, "threads": given.threads}, given.set)
        with tempfile.TemporaryDirectory() as folder, launched(ParallelConfig()) as topology:
            rows = run(settings, topology, Path(folder), parts)
        print(publish(rows, given.output, given.docs))
        slower = told(earlier.compared(list(map(asdict, rows)), figures)) if earlier else 0
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return int(slower or any(row.status != "ok" for row in rows))


def run(settings: CostSettings, topology: Topology, folder: Path, parts: Sequence[str] = tuple(PARTS)) -> list[CostRow]:
    """All rows of the parts, in order; `folder` is for what the service's process reads."""
    alone(topology.world_size)
    torch.set_num_threads(settings.threads)
    bench = set_up(settings, topology, folder, lambda text: say(topology, text))
    where, shown = environment(topology.device), settings.model_dump(mode="json")
    rows = [row for name in parts for row in PARTS[name](bench)]
    return [replace(row, settings=shown, environment={**where, **row.environment}) for row in rows]


def publish(rows: Sequence[CostRow], output: Path | None, docs: Path | None) -> str:
    """Write the records, renew the documentation, where asked; returns what is shown."""
    if output:
        write_lines(output, rows)
    text = f"{conditions(rows)}\n\n{table(rows)}"
    if docs:
        renew(docs / "influence.md", {"cost": text})
    return text


def figures(records: Iterable[Mapping[str, Any]]) -> dict[str, float | None]:
    """How often a second each contender could do its work, by part and sizes; None where its scores are wrong."""
    usual, found = CostSettings().model_dump(mode="json"), dict[str, float | None]()
    for record in records:
        # The machine's own rate is nobody's.
        if record.get("bench") == BENCH and record["timing"] is not None and record["contender"] != scoring.PEAK:
            # Turns are no part of the work, and threads are compared apart.
            alike = {
                "rounds",
                "threads",
                *(key for key, value in usual.items() if record["settings"].get(key) == value),
            }
            others = [f"{key}={value}" for key, value in record["settings"].items() if key not in alike]
            name = f"{record['passes']}: {', '.join([record['contender'], record['computes'], *others])}"
            found[name] = 1.0 / record["timing"]["median"] if record["status"] == "ok" else None
    return found


def conditions(rows: Sequence[CostRow]) -> str:
    """Where and on what it was measured, and whether the machine was quiet."""
    where, how = rows[0].environment, rows[0].settings
    foreign = foreign_share(rows)
    noisy = "" if foreign < QUIET else ": wall times are not to be quoted"
    shape = f"{how['layers']} layers, d {how['d_model']}, vocabulary {how['vocab']}, windows of {how['seq_len']} tokens"
    return (
        f"Measured on {where['device']}, {where['threads']} thread(s), torch {where['torch']}, commit "
        f"{str(where['commit'])[:12]}; {shape}, fp32; {how['rounds']} turns. "
        f"Other processes used {foreign:.0%} of the machine{noisy}."
    )


if __name__ == "__main__":
    sys.exit(main())
