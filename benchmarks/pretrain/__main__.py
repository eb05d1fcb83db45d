"""Training steps: tokens a second, MFU and HFU, what a step's time goes to, memory; and rivals.

    python -m benchmarks.pretrain                                     # what suits this machine
    python -m benchmarks.pretrain my.yaml model.seq_len=1024 --sweep pretrain.micro_batch=1,2,4,8
    python -m benchmarks.pretrain --against main --only synpro_engine # this tree and a commit in turns
    synpro launch --nproc-per-node 8 bench pretrain synpro-1.1b parallel.tp=2

Exit status 1 where one of ours fails or is wrong, or has become slower than `--against`.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from argparse import ArgumentParser, Namespace
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import torch

import synpro_engine  # noqa: F401 - first: it prepares Megatron's import
from benchmarks.common.against import Earlier, is_commit, told, with_commit
from benchmarks.common.command import command_line, picked, refuse_results
from benchmarks.common.environment import environment
from benchmarks.common.processes import ends_with_us
from benchmarks.common.records import read_lines, write_lines
from benchmarks.pretrain.case import CPU_CASES, CUDA_CASES, Case, cases, combinations
from benchmarks.pretrain.contenders import CONTENDERS, OURS
from benchmarks.pretrain.measure import measure, memory
from benchmarks.pretrain.show import draw, label, table
from synpro_engine.config import UserError
from synpro_engine.dist import ParallelConfig, launched
from synpro_engine.dist.layout import Layout

Record = Mapping[str, object]
_ALONE = "is the peak of one process on its own"


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, write, draw. Returns 2 after a user's fault."""
    parser = command_line(
        "pretrain", __doc__, "--output", "--rivals", "--against", "--turns",
        epilog="Under `synpro launch` our own steps alone are timed.",
    )  # fmt: skip
    given = _options(parser).parse_intermixed_args(argv)
    sys.path += given.rivals
    given.only = picked(parser, "--only", given.only, CONTENDERS)
    try:
        if given.ranks and given.against:
            raise UserError("--ranks: is no comparison with `--against`; give one of them")
        if given.memory and (given.ranks or is_commit(given.against)):
            raise UserError(f"--memory: {_ALONE}; leave out `--{'ranks' if given.ranks else 'against'}`")
        if given.ranks:
            return _over_ranks(given)
        if is_commit(given.against):
            refuse_results(given)
            same = _again(given)
            return told(with_commit(given.against, "benchmarks.pretrain", same, figures, turns=given.turns))
        earlier = Earlier.read(given.against)
        records = _measured(given)
        if not records:
            return 0  # another rank tells
        print(table(records))
        if given.plot:
            draw(records, given.plot)
        slower = told(earlier.compared(records, figures)) if earlier else 0
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    bad = any(record["contender"] == OURS and record["status"] != "ok" for record in records)
    return int(bad or slower)


def _options(parser: ArgumentParser) -> ArgumentParser:
    add = parser.add_argument
    add("what", nargs="*", metavar="RECIPE | KEY=VALUE", help="recipes whose pretrained model trains, and settings")
    add("--sweep", action="append", default=[], metavar="KEY=V1,V2", help="each value in turn; several combine")
    add("--only", default=",".join(CONTENDERS), help="contenders (default: %(default)s)")
    add("--micro-batches", type=int, default=1, help="of a timed step (default: %(default)s)")
    add("--rounds", type=int, default=7, help="timed steps of each (default: %(default)s)")
    add("--warmups", type=int, default=2, help="untimed steps of each (default: %(default)s)")
    add("--memory", action="store_true", help="the peak of each contender too, in a process of its own")
    add("--ranks", metavar="N,N", help="our own steps on so many processes of this machine, and how well they scale")
    add("--plot", type=Path, metavar="FILE", help="draw the results, and how the cost grows along a sweep")
    return parser


def _cases(given: Namespace) -> list[Case]:
    names = [word for word in given.what if "=" not in word]
    overrides = [word for word in given.what if "=" in word]
    usual = CUDA_CASES if torch.cuda.is_available() else CPU_CASES
    recipes = [(name, ()) for name in names] or usual
    return list(cases([(name, (*more, *overrides)) for name, more in recipes], given.sweep, given.micro_batches))


def _measured(given: Namespace) -> list[Record]:
    """On rank 0 the records; each is written as soon as its case is done."""
    wanted = _cases(given)
    layouts = {_layout(case).model_dump_json() for case in wanted}
    if len(layouts) > 1:
        raise UserError(
            "--sweep: a job has one layout; `parallel` is not swept within it (--ranks starts one for each)"
        )
    records: list[Record] = []
    with launched(_layout(wanted[0])) as topology:
        alone = topology.world_size == 1
        if given.memory and not alone:
            raise UserError(f"--memory: {_ALONE}, and this is a job of {topology.world_size}")
        names = given.only if alone else [OURS]
        where = environment(topology.device)
        for case in wanted:
            found = measure(case, names, topology, rounds=given.rounds, warmups=given.warmups)
            for record in found:
                if given.memory and record["status"] != "failed":
                    record |= memory(case, str(record["contender"]))
            about = {
                "bench": "pretrain", "case": case.title, "recipe": case.recipe_name, "overrides": case.overrides,
                "micro_batches": case.micro_batches, "ranks": topology.world_size, "layout": str(topology.layout),
            }  # fmt: skip
            done = [about | record | {"environment": where} for record in found]
            if topology.is_main:
                records += done
                if given.output:
                    write_lines(given.output, done)
    return records


def _layout(case: Case) -> ParallelConfig:
    recipe = case.recipe
    own = recipe.pretrain.parallel
    return recipe.parallel if own is None else recipe.parallel.model_copy(update=dict(own))


def figures(records: Iterable[Record]) -> dict[str, float | None]:
    """Tokens a second of each case of ours, by case, settings, ranks and layout; None of one that is not ok."""
    return {
        f"{label(record)} on {record['ranks']} ({record['layout']})": (
            float(str(record["tokens_per_s"])) if record["status"] == "ok" else None
        )
        for record in records
        if record.get("bench") == "pretrain" and record.get("contender") == OURS
    }


def _again(given: Namespace) -> list[str]:
    """The same measurement of our own steps, as arguments."""
    sweeps = [word for sweep in given.sweep for word in ("--sweep", sweep)]
    counts = {"--micro-batches": given.micro_batches, "--rounds": given.rounds, "--warmups": given.warmups}
    numbers = [word for option, count in counts.items() for word in (option, str(count))]
    return [*given.what, *sweeps, *numbers, "--only", OURS]


def _over_ranks(given: Namespace) -> int:
    counts = sorted({int(count) for count in given.ranks.split(",") if count.isdecimal() and int(count)})
    if not counts:
        raise UserError(f"--ranks: {given.ranks!r} has no number of processes")
    # As many threads to a process, however many there are: else one process alone would have them all.
    threads = os.environ.get("OMP_NUM_THREADS", str(max(1, len(os.sched_getaffinity(0)) // counts[-1])))
    records: list[Record] = []
    # Read before any starts: a recipe or a setting that is none is no layout that does not fit.
    for job, layouts in [(job, [_layout(case) for case in _cases(job)]) for job in _jobs(given)]:
        for count in counts:
            try:
                for layout in layouts:
                    Layout.of(layout, count)
            except UserError as error:  # of several counts and layouts some go together
                print(f"left out: {error}", file=sys.stderr)
                continue
            records += _launched(job, count, threads)
    if not records:
        raise UserError("--ranks: no layout goes into any of these numbers; why is said above")
    if given.output:
        write_lines(given.output, records)
    print(table(records))
    for line in _scaling(records):
        print(line)
    if given.plot:
        draw(records, given.plot)
    return int(any(record["status"] != "ok" for record in records))


def _jobs(given: Namespace) -> Iterator[Namespace]:
    """The same measurement in jobs of one layout each: one for each recipe, and for what is swept of a layout."""
    divided = [sweep for sweep in given.sweep if "parallel" in sweep.partition("=")[0].split(".")]
    within = [sweep for sweep in given.sweep if sweep not in divided]
    settings = [word for word in given.what if "=" in word]
    for name in [word for word in given.what if "=" not in word] or [None]:
        for layout in combinations(divided):
            what = [*([name] if name else []), *settings, *layout]
            yield Namespace(**{**vars(given), "what": what, "sweep": within})


def _launched(given: Namespace, count: int, threads: str) -> list[Record]:
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "records.jsonl"
        command = [sys.executable, "-m", "synpro_engine", "launch", "--nproc-per-node", str(count), "bench", "pretrain"]
        command += [*_again(given), "--output", str(output)]
        paths = {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": threads}
        done = subprocess.run(
            command, env={**os.environ, **paths}, stdout=subprocess.PIPE, check=False, preexec_fn=ends_with_us()
        )
        if not output.exists():
            raise UserError(f"--ranks: {count} processes ended with code {done.returncode}; why is said above")
        return read_lines(output)


def _scaling(records: Sequence[Record]) -> Iterator[str]:
    """Tokens a second and process, against those of the fewest processes."""
    fewest: dict[object, Record] = {}
    for record in (one for one in records if one["status"] == "ok"):
        first = fewest.setdefault(label(record), record)
        rate, base = (float(str(one["tokens_per_s_per_device"])) for one in (record, first))
        yield f"{label(record)} on {record['ranks']}: {rate / base:.0%} of the speed a process on {first['ranks']}"


if __name__ == "__main__":
    sys.exit(main())
