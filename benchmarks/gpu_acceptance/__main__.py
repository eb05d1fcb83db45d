"""What a GPU machine is asked first: each part in processes of its own, nine minutes at most, and one table.

    python -m benchmarks.gpu_acceptance                          # all parts, most telling first
    python -m benchmarks.gpu_acceptance --parts kernels,races    # some
    python -m benchmarks.gpu_acceptance --dry-run                # the same programs at tiny shapes on the CPU

A part whose record is in the folder is not run again, so a run that was ended goes on. Exit status 1 where one failed.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from benchmarks.common.command import command_line, picked
from benchmarks.common.environment import environment
from benchmarks.common.tables import aligned
from benchmarks.gpu_acceptance.part import Place
from benchmarks.gpu_acceptance.parts import PARTS
from benchmarks.gpu_acceptance.runner import Outcome, kept, run
from synpro_engine.config import UserError

HEADINGS = ("part", "what", "figure", "unit", "asked", "reached")


def main(argv: Sequence[str] | None = None) -> int:
    """Run, print. Returns 2 after a user's fault."""
    parser = command_line("gpu_acceptance", __doc__)
    add = parser.add_argument
    add("--parts", default=",".join(PARTS), help="default: all; --list names them")
    add("--folder", type=Path, help="records and logs (default: runs/gpu-acceptance; of a dry run: ...-dry)")
    add("--again", action="store_true", help="run parts whose record is there, too")
    add("--dry-run", action="store_true", help="every part at tiny shapes on the CPU")
    add("--list", action="store_true", help="name the parts and stop")
    given = parser.parse_args(argv)
    if given.list:
        print("\n".join(aligned([(name, part.about) for name, part in PARTS.items()])))
        return 0
    # A machine whose time is over says so by SIGTERM: what runs is ended on the way out, as after Ctrl-C.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    names = picked(parser, "--parts", given.parts, PARTS)
    folder = given.folder or Path("runs/gpu-acceptance-dry" if given.dry_run else "runs/gpu-acceptance")
    try:
        outcomes = _outcomes(names, folder.resolve(), dry=given.dry_run, again=given.again)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(table(outcomes))
    return int(any(outcome["status"] not in ("ok", "skipped") for outcome in outcomes.values()))


def _outcomes(names: Sequence[str], folder: Path, *, dry: bool, again: bool) -> dict[str, Outcome]:
    if not dry and not torch.cuda.is_available():
        raise UserError("no CUDA device here; --dry-run runs every part at tiny shapes on the CPU")
    device = torch.device("cpu" if dry else "cuda")
    found = environment(device)
    where = {key: found[key] for key in ("device", "torch", "commit", "dirty", "utc")}
    folder.mkdir(parents=True, exist_ok=True)
    place = Place(dry=dry, folder=folder, gpus=1 if dry else torch.cuda.device_count())
    outcomes: dict[str, Outcome] = {}
    for name in names:
        outcome = None if again else kept(name, place, where)
        if outcome is None:
            print(f"==> {name}: {PARTS[name].about}", flush=True)
            outcome = run(name, PARTS[name], place, where)
            print(f"    {outcome['status']}, {outcome['seconds']:.0f} s; {folder / name}.log", flush=True)
        elif outcome["commit"] != where["commit"]:
            print(f"==> {name}: kept, of commit {outcome['commit']}", flush=True)
        outcomes[name] = outcome
    return outcomes


def table(outcomes: Mapping[str, Outcome]) -> str:
    """A row for each figure, and one for each part that did not end well."""
    rows: list[tuple[str, ...]] = [HEADINGS]
    for name, outcome in outcomes.items():
        rows += [(name, *line) for line in outcome["lines"]]
        if outcome["status"] != "ok":
            rows.append((name, f"{outcome['status']}: {outcome['error']}", "", "", "", ""))
    return "\n".join(aligned(rows, right=range(2, 3)))


if __name__ == "__main__":
    sys.exit(main())
