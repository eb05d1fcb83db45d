"""A short form of every speed benchmark, one after the other, and a table of their ratios: `make bench`.

    python -m benchmarks.suite                              # some ten minutes on two cores
    python -m benchmarks.suite --parts kernels,pretrain --folder runs/bench
    python -m benchmarks.suite --from benchmarks/results/DEVICE-suite.jsonl --readme README.md    # renews its table

Records and logs stay in the folder. Exit status 1 where one of ours failed, or was wrong.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.common.command import command_line, picked
from benchmarks.common.documents import renew
from benchmarks.common.environment import QUIET
from benchmarks.common.processes import command, ends_with_us, variables
from benchmarks.common.records import read_lines
from benchmarks.common.tables import aligned, markdown
from benchmarks.pretrain.contenders import CONTENDERS, OURS
from synpro_engine.config import UserError

Record = Mapping[str, Any]
Line = tuple[str, str, float, str]
"""Of what, beside whom, how many times as fast, and what more is to be said."""


def _kernels(records: Sequence[Record]) -> Iterator[Line]:
    for record in (one for one in records if not one["wrong"]):
        share = record["limit_seconds"] / record["timings"]["ours"]["median"]
        yield record["op"], "plain PyTorch", record["ratio"], f"{_spread(record['ratios'])}; {share:.0%} of the limit"
        for name, rival in record.get("rivals", {}).items():
            if rival["ratio"] is not None:
                yield record["op"], name, rival["ratio"], ""


def _pretrain(records: Sequence[Record]) -> Iterator[Line]:
    right = [record for record in records if record["status"] == "ok"]
    for ours in (record for record in right if record["contender"] == OURS):
        for other in (record for record in right if record is not ours and record["case"] == ours["case"]):
            # Of each turn: both stand beside plain PyTorch there, where that could run.
            turns = [a / b for a, b in zip(ours["ratios"], other["ratios"], strict=True)]
            if turns:
                more = f"{_spread(turns)}; {ours['tokens_per_s']:,.0f} tokens/s"
                yield ours["case"], other["contender"], statistics.median(turns), more


def _spread(turns: Sequence[float]) -> str:
    return f"{min(turns):.2f} to {max(turns):.2f}"


def _rollout(records: Sequence[Record]) -> Iterator[Line]:
    for record in records:
        if record["part"] == "speed":
            rate = record["tokens_per_s"]["synpro"]
            more = f"{_spread(record['ratios'])}; {rate:,.0f} tokens/s"
            yield f"sampling {record['shape']}", "transformers", record["ratio"], more


def _influence(records: Sequence[Record]) -> Iterator[Line]:
    for record in records:
        if record["ratio"] is not None:
            what = f"{record['passes']}: {record['contender']}, {record['computes']}"
            yield what, record["against"], record["ratio"]["median"], "a cost: the less, the better"


def _optimizer(records: Sequence[Record]) -> Iterator[Line]:
    """An update by Muon and one by AdamW, beside torch's own of each kind."""
    for record in records:
        update = {name: timing["median"] for name, timing in record["timings"]["update"].items()}
        for ours, other in OPTIMIZERS.items():
            if other in update:
                named = f"{ours.removeprefix('engine, ')}, an update of {record['model']}"
                yield named, other, update[other] / update[ours], f"{1e3 * update[ours]:.1f} ms"


def absent(of_parts: Mapping[str, Sequence[Record]]) -> str:
    """One line of the rivals that have no figure, and why; nothing where each has one."""
    whys: dict[str, dict[str, None]] = {}
    missing = *_no_op(of_parts.get("kernels", ())), *_no_steps(of_parts.get("pretrain", ()))
    for name, why in (*missing, *_no_optimizer(of_parts.get("optimizer_step", ()))):
        whys.setdefault(name, {})[why] = None
    told = (f"{name} ({'; '.join(of)})" for name, of in whys.items())
    return f"Without a figure: {', '.join(told)}." if whys else ""


def _no_op(records: Sequence[Record]) -> Iterator[tuple[str, str]]:
    for record in records:
        for name, rival in record.get("rivals", {}).items():
            if rival["ratio"] is None:
                yield name, f"{record['op']}: {rival['why']}"


def _no_optimizer(records: Sequence[Record]) -> Iterator[tuple[str, str]]:
    for record in records:
        for name in OPTIMIZERS.values():
            if name not in record["timings"]["update"]:
                yield name, "this torch has none"


def _no_steps(records: Sequence[Record]) -> Iterator[tuple[str, str]]:
    there = {record["contender"] for record in records}
    for record in records:
        if record["status"] != "ok" and record["contender"] != OURS:
            yield record["contender"], f"{record['status']}: {record['reason']}"
    yield from ((name, "was not run") for name in CONTENDERS if records and name not in there)


def _foreign_share(record: Record) -> float:
    return float(record.get("foreign_cpu_share", record["environment"].get("foreign_cpu_share", 0.0)))


PARTS: dict[str, tuple[str, tuple[str, ...], Callable[[Sequence[Record]], Iterator[Line]]]] = {
    "kernels": ("benchmarks.kernels", ("--rounds", "7"), _kernels),
    "pretrain": ("benchmarks.pretrain", ("--rounds", "5"), _pretrain),
    "rollout": ("benchmarks.rollout", ("--parts", "speed", "--rounds", "2"), _rollout),
    "influence_cost": ("benchmarks.influence_cost", ("--parts", "scoring,in-run", "--repeats", "3"), _influence),
    # Of the iteration alone a stack that takes no time: what it costs at size stands in its README.
    "optimizer_step": ("benchmarks.optimizer_step", ("--rounds", "5", "--stack", "1x64x128"), _optimizer),
}


IN_README = ("pretrain", "rollout", "kernels")
"""What costs are made of stands in docs/influence.md, what an update costs in docs/optimizers.md."""
OPTIMIZERS = {"engine, adamw": "torch.optim.AdamW", "engine, muon": "torch.optim.Muon and AdamW"}
"""Of the engine's updates those that they stand beside."""
HEADINGS = ("what", "beside", "times", "and")


def main(argv: Sequence[str] | None = None) -> int:
    """Run them, and print the table last. Returns 2 after a user's fault."""
    parser = command_line("suite", __doc__)
    add = parser.add_argument
    add("--parts", default=",".join(PARTS), help="default: %(default)s")
    add("--folder", type=Path, default=Path("runs/bench"), help="default: %(default)s")
    add("--from", dest="records", type=Path, metavar="FILE", help="measure nothing: take these records")
    add("--readme", type=Path, metavar="FILE", help="renew the block `speed` of a Markdown file")
    given = parser.parse_args(argv)
    try:
        if given.records:
            of_parts = {part: [] for part in PARTS}
            for record in read_lines(given.records):
                of_parts[record["bench"]].append(record)
        else:
            parts = picked(parser, "--parts", given.parts, PARTS)
            of_parts = {part: measured(part, given.folder) for part in parts}
        lines = [line for part, records in of_parts.items() for line in PARTS[part][2](records)]
        told = absent(of_parts)
        print("\n".join([*aligned([HEADINGS, *map(_cells, lines)], right=range(2, 3)), *([told] if told else [])]))
        if given.readme:
            shown = [line for part in IN_README for line in PARTS[part][2](of_parts[part])]
            block = markdown(HEADINGS, map(_cells, shown))
            renew(given.readme, {"speed": f"{block}\n\n{told}" if told else block})
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for part, records in of_parts.items():
        busy = max((_foreign_share(record) for record in records), default=0.0)
        if busy > QUIET:
            print(f"{part}: others took up to {busy:.0%} of the machine meanwhile: not to be quoted")
    # Records may be older than a part; what README shows must be there.
    needed = IN_README if given.records else of_parts
    gone = any(not of_parts[part] for part in needed)
    return int(gone or any(_is_bad(record) for records in of_parts.values() for record in records))


def measured(part: str, folder: Path) -> list[Record]:
    """Run one part in a process of its own; its records, none where it wrote none."""
    module, options, _ = PARTS[part]
    folder.mkdir(parents=True, exist_ok=True)
    output, log = folder / f"{part}.jsonl", folder / f"{part}.log"
    output.unlink(missing_ok=True)
    print(f"==> {part}: python -m {module} {' '.join(options)}", flush=True)
    begin = time.perf_counter()
    with log.open("w", encoding="utf-8") as file:
        arguments = command(module, *options, "--output", str(output))
        done = subprocess.run(
            arguments, stdout=file, stderr=subprocess.STDOUT, env=variables({}), check=False, preexec_fn=ends_with_us()
        )
    print(f"    {time.perf_counter() - begin:.0f} s, code {done.returncode}; {log}", flush=True)
    return read_lines(output) if output.exists() else []


def _cells(line: Line) -> tuple[str, str, str, str]:
    what, beside, times, more = line
    return what, beside, f"{times:.2f}", more


def _is_bad(record: Record) -> bool:
    ours = record.get("contender", OURS) == OURS
    return bool(record.get("wrong")) or (ours and record.get("status", "ok") != "ok")


if __name__ == "__main__":
    sys.exit(main())
