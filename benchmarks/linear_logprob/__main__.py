"""Time, memory and accuracy of linear_logprob and its rivals, forward and forward+backward, in one run.

`python -m benchmarks.linear_logprob`; what is measured and how is in benchmarks/README.md.
This file is the command: options, defaults by device, output.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import fields
from functools import partial

import torch

from benchmarks.common import harness
from benchmarks.common.command import command_line, picked
from benchmarks.common.environment import QUIET
from benchmarks.common.processes import run_fresh
from benchmarks.common.records import Row, asked_and_reached, foreign_share, table, write_lines
from benchmarks.linear_logprob.asks import asks
from benchmarks.linear_logprob.problem import Shape
from benchmarks.linear_logprob.rivals import Contender, contenders
from benchmarks.linear_logprob.run import BACKWARD, FORWARD, Plan, Problem, run

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
DEFAULTS = {
    "cpu": {"tokens": 2048, "width": 576, "vocab": 49152, "dtype": "fp32", "chunk_tokens": 256, "warmups": 1},
    "cuda": {"tokens": 8192, "width": 4096, "vocab": 131072, "dtype": "bf16", "chunk_tokens": 1024, "warmups": 3},
}
PASSES = {"forward": FORWARD, "backward": BACKWARD}
GET_RIVALS = "pip install --no-deps --target DIR liger-kernel cut-cross-entropy quack-kernels"


def parser() -> argparse.ArgumentParser:
    """The command line. What is not given comes from the device's defaults."""
    found = command_line(
        "linear_logprob",
        __doc__,
        *("--entropy", "--rivals", "--output"),
        epilog=f"Other libraries are used where they are importable. Get them with `{GET_RIVALS}`, use --rivals DIR.",
    )
    add = found.add_argument
    add("--device", choices=tuple(DEFAULTS), default="cuda" if torch.cuda.is_available() else "cpu")
    for name in ("dtype", "tokens", "width", "vocab", "chunk_tokens", "warmups"):
        values = ", ".join(f"{defaults[name]} on {device}" for device, defaults in DEFAULTS.items())
        add(f"--{name.replace('_', '-')}", type=str if name == "dtype" else int, help=f"default: {values}")
    add("--threads", type=int, default=2, help="CPU threads (default: %(default)s)")
    add("--passes", default="forward,backward", help="default: %(default)s (backward includes its forward)")
    add("--rounds", type=int, default=7, help="timed rounds (default: %(default)s)")
    add("--logit-std", type=float, default=3.0, help="spread of the random logits (default: %(default)s)")
    add("--seed", type=int, default=0, help="of the random inputs")
    add("--only", metavar="NAMES", help="contenders by name, with commas; see --list")
    add("--memory", action=argparse.BooleanOptionalAction, default=True, help="measure peak extra memory")
    add("--list", action="store_true", help="name the contenders and stop")
    add("--memory-of", metavar="NAME", help=argparse.SUPPRESS)
    return found


def read(argv: Sequence[str] | None) -> tuple[argparse.Namespace, Plan, list[Contender], list[str]]:
    """Return the options, what is run, the contenders and the passes. Ends the program where an option is wrong."""
    command = parser()
    given = command.parse_args(argv)
    for name, value in DEFAULTS[given.device].items():
        setattr(given, name, value if getattr(given, name) is None else getattr(given, name))
    everyone = {each.name: each for each in contenders(given.chunk_tokens)}
    names = picked(command, "--only", given.only or ",".join(everyone), everyone)
    passes = [PASSES[name] for name in picked(command, "--passes", given.passes, PASSES)]
    [given.dtype] = [DTYPES[name] for name in picked(command, "--dtype", given.dtype, DTYPES)]
    given.shape = Shape(**{field.name: getattr(given, field.name) for field in fields(Shape)})
    plan = Plan(**{field.name: getattr(given, field.name) for field in fields(Plan)})
    return given, plan, [each for name, each in everyone.items() if name in names], passes


def main(argv: Sequence[str] | None = None) -> int:
    """Run, print, write. Returns 1 where one of ours is missing, fails or is wrong."""
    given, plan, chosen, passes = read(argv)
    sys.path.extend(given.rivals)
    torch.set_num_threads(given.threads)
    if given.list:
        print("\n".join(f"{each.name:22}{each.what}" for each in contenders(given.chunk_tokens)))
        return 0
    if given.memory_of:
        print(json.dumps({"extra_bytes": _memory_here(plan, chosen, given.memory_of, passes[0])}))
        return 0
    again = list(argv) if argv is not None else sys.argv[1:]
    rows: list[Row] = []
    for found in run(plan, chosen, passes, partial(_memory_elsewhere, again), say):
        rows += found
        if given.output:
            write_lines(given.output, found)
    say("")
    print(table(rows))
    print(asked_and_reached(asks(rows, given.device)))
    print(quietness(rows))
    ours = {each.name for each in chosen if each.ours}
    return int(any(not row.right for row in rows if row.contender in ours))


def _memory_here(plan: Plan, chosen: Sequence[Contender], name: str, passes: str) -> int:
    compute = next(each for each in chosen if each.name == name).load()
    problem = Problem(plan)
    return harness.peak_extra_bytes(problem.step(compute, passes), problem.device)


def _memory_elsewhere(arguments: Sequence[str], name: str, passes: str) -> int | None:
    short = next(key for key, value in PASSES.items() if value == passes)
    try:
        found = run_fresh("benchmarks.linear_logprob", [*arguments, "--memory-of", name, "--passes", short])
    except RuntimeError as error:  # killed for memory, say: the times stand
        say(f"{passes}: memory of {name} not measured: {error}\n")
        return None
    return int(str(found["extra_bytes"]))


def say(text: str) -> None:
    """Show what is running, on stderr: one changing line on a terminal, a line each in a log."""
    terminal = sys.stderr.isatty()
    print(f"\r\x1b[K{text}" if terminal else text, end="" if terminal else "\n", file=sys.stderr, flush=True)


def quietness(rows: Sequence[Row]) -> str:
    """Say whether other processes disturbed the times."""
    share = foreign_share(rows)
    noisy = "" if share < QUIET else ": times are not to be quoted"
    return f"other processes used {share:.0%} of this machine's CPU time meanwhile{noisy}"


if __name__ == "__main__":
    sys.exit(main())
