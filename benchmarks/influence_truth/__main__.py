"""Which influence estimator predicts what a real AdamW step does to the reference loss: one command, about ten minutes.

`python -m benchmarks.influence_truth --output FILE` trains a small model on organic text, scores candidates in every
way there is, takes one real step on each of them, then trains on random half subsets. What that means and what came out
is in docs/influence.md. This file is the command: options, order of work, resuming.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

import synpro_engine  # noqa: F401 - first: it prepares Megatron's import
from benchmarks.common.command import command_line
from benchmarks.common.environment import environment
from benchmarks.influence_truth.agreement import refused_in_half_precision, sweep
from benchmarks.influence_truth.figures import best
from benchmarks.influence_truth.gradients import score_all
from benchmarks.influence_truth.report import conditions, contest, oracles, table, write_docs
from benchmarks.influence_truth.results import Results
from benchmarks.influence_truth.settings import TruthSettings
from benchmarks.influence_truth.setup import Setup, set_up
from benchmarks.influence_truth.standings import standings
from benchmarks.influence_truth.steps import Truth
from synpro_engine.config import UserError, atomic_write_text, json_text
from synpro_engine.dist import ParallelConfig, Topology, launched, progress, say

LINES = "lines.jsonl"
Record = dict[str, object]


def parser() -> argparse.ArgumentParser:
    """The command line."""
    found = command_line("influence_truth", __doc__, "--docs", "--set")
    add, defaults = found.add_argument, TruthSettings()
    add("--output", type=Path, metavar="FILE", help="where the JSON lines go; ours are in benchmarks/results")
    add("--candidates", type=int, default=defaults.candidates, help="default: %(default)s")
    add("--subsets", type=int, default=defaults.subsets, help="default: %(default)s")
    add("--seed", type=int, default=defaults.seed, help="of texts, weights and subsets (default: %(default)s)")
    add("--resume", type=Path, metavar="DIR", help="work there, and go on with what an earlier run left there")
    also = "records of other runs, to set beside in --docs"
    add("--also", type=Path, nargs="+", default=[], metavar="FILE", help=also)
    add("--plot-only", action="store_true", help="measure nothing: read --output, print the table, renew --docs")
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Measure (or read), print, write. Returns 2 after a user's fault."""
    command = parser()
    given = command.parse_args(argv)
    if given.plot_only and given.output is None:
        command.error("--plot-only needs --output to read from")
    try:
        if not given.plot_only:
            named = {"candidates": given.candidates, "subsets": given.subsets, "seed": given.seed}
            settings = TruthSettings.read(named, given.set)
            with tempfile.TemporaryDirectory() as scratch, launched(ParallelConfig()) as topology:
                torch.set_num_threads(1)  # a small model gains nothing from more
                lines = run(settings, topology, given.resume or Path(scratch))
            text = "".join(json.dumps(line) + "\n" for line in lines)
            path = given.output or Path(tempfile.mkdtemp()) / "influence_truth.jsonl"
            path.parent.mkdir(parents=True, exist_ok=True)
            atomic_write_text(path, text)
        else:
            path = given.output
        show(path, given.docs, given.also)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def show(path: Path, docs: Path | None, also: Sequence[Path]) -> None:
    """Print what the records say; with `docs`, renew the documentation."""
    results = Results.read(path)
    ranked = standings(results)
    if docs is not None:
        write_docs(docs, results, ranked, [Results.read(other) for other in also])
    for part in (table(ranked), contest(results), oracles(results), conditions(results)):
        print(part + "\n")
    top = best(ranked)
    reached = "reached" if top.alone.value >= 0.95 else "NOT reached"
    print(f"asked: rho >= 0.95 of one step for the best option; {reached}: {top.estimator}, {top.alone}")


# ---- the work, in order ----------------------------------------------------------------------------------------------


def run(settings: TruthSettings, topology: Topology, work: Path) -> list[Record]:
    """All records of a complete run. What `work` holds already is not done again."""
    work.mkdir(parents=True, exist_ok=True)
    _same_run(settings, work)
    log = Log(work / LINES)
    setup = set_up(settings, topology, work)
    if not log.of("sweep"):
        say(topology, "scores: baselines, probes, gradients (a few minutes)")
        log.add([scored.record() for scored in score_all(setup)])
        log.add(list(sweep(setup)))
    if not refused_in_half_precision(setup):
        raise AssertionError("finite differences must refuse bf16")
    truth = Truth(setup)
    _each(log, "candidate", settings.candidates, topology, lambda index: _candidate(setup, truth, index))
    _each(log, "subset", settings.subsets, topology, lambda index: _subset(truth, index))
    head: Record = {
        "row": "run",
        "settings": settings.model_dump(mode="json"),
        "environment": environment(topology.device),
        "theta": truth.losses,
    }
    return [head, *log.records]


class Log:
    """Records in a file, one JSON object a line. A line that an interruption cut short is dropped."""

    def __init__(self, path: Path) -> None:
        self._path = path
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        whole = text[: text.rfind("\n") + 1]
        if whole != text:
            atomic_write_text(path, whole)
        self.records: list[Record] = [json.loads(line) for line in whole.splitlines()]

    def of(self, row: str) -> list[Record]:
        """The records of one kind."""
        return [record for record in self.records if record["row"] == row]

    def add(self, records: Sequence[Record]) -> None:
        """Append them in one write."""
        with self._path.open("a", encoding="utf-8") as file:
            file.write("".join(json_text(record) + "\n" for record in records))
        self.records += records


def _each(log: Log, row: str, count: int, topology: Topology, measure: Callable[[int], Record]) -> None:
    done = {record["index"] for record in log.of(row)}
    with progress(count, row, row, topology, len(done)) as bar:
        for index in (index for index in range(count) if index not in done):
            log.add([{"row": row, "index": index, **measure(index)}])
            bar.update()


def _candidate(setup: Setup, truth: Truth, index: int) -> Record:
    candidate, alone, mates = setup.candidates[index], truth.alone(index), truth.among_mates(index)
    return {
        "kind": candidate.kind,
        "tokens": len(candidate.ids),
        "alone": alone["reference"],
        "alone_held_out": alone["held_out"],
        "among_mates": mates["reference"],
    }


def _subset(truth: Truth, index: int) -> Record:
    groups, drops = truth.subset(index)
    return {"groups": groups, "drop": drops["reference"], "drop_held_out": drops["held_out"]}


def _same_run(settings: TruthSettings, work: Path) -> None:
    path, text = work / "settings.json", settings.model_dump_json(indent=2) + "\n"
    if path.exists() and path.read_text(encoding="utf-8") != text:
        raise UserError(f"{path}: this directory belongs to a run of other settings")
    atomic_write_text(path, text)


if __name__ == "__main__":
    sys.exit(main())
