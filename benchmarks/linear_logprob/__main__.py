"""Time, memory and accuracy of linear_logprob and its rivals, forward and forward+backward, in one run.

`python -m benchmarks.linear_logprob`; what is measured and how is in benchmarks/README.md.
This file is the command: options, defaults by device, output, and what the numbers are held to.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch

from benchmarks.common import harness
from benchmarks.common.records import Ask, Row, asked_and_reached, find, ratio, table, write_lines
from benchmarks.linear_logprob.problem import Shape
from benchmarks.linear_logprob.rivals import Contender, contenders
from benchmarks.linear_logprob.run import BACKWARD, FORWARD, Problem, Settings, run

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
DEFAULTS = {
    "cpu": {"tokens": 2048, "width": 576, "vocab": 49152, "dtype": "fp32", "chunk_tokens": 256, "warmups": 1},
    "cuda": {"tokens": 8192, "width": 4096, "vocab": 131072, "dtype": "bf16", "chunk_tokens": 1024, "warmups": 3},
}
PASSES = {"forward": FORWARD, "backward": BACKWARD}
GET_RIVALS = "pip install --no-deps --target DIR liger-kernel cut-cross-entropy quack-kernels"


def parser() -> argparse.ArgumentParser:
    """The command line. What is not given comes from the device's defaults."""
    found = argparse.ArgumentParser(
        description=(__doc__ or "").splitlines()[0],
        epilog=f"Other libraries are used where they are importable. Get them with `{GET_RIVALS}`, use --rivals DIR.",
    )
    add = found.add_argument
    add("--device", choices=tuple(DEFAULTS), default="cuda" if torch.cuda.is_available() else "cpu")
    for name in ("dtype", "tokens", "width", "vocab", "chunk_tokens", "warmups"):
        values = ", ".join(f"{defaults[name]} on {device}" for device, defaults in DEFAULTS.items())
        add(f"--{name.replace('_', '-')}", type=str if name == "dtype" else int, help=f"default: {values}")
    add("--threads", type=int, default=2, help="CPU threads (default: %(default)s)")
    add("--entropy", action=argparse.BooleanOptionalAction, default=True, help="compute entropy too, where one can")
    add("--passes", default="forward,backward", help="default: %(default)s (backward includes its forward)")
    add("--rounds", type=int, default=7, help="timed rounds (default: %(default)s)")
    add("--logit-std", type=float, default=3.0, help="spread of the random logits (default: %(default)s)")
    add("--seed", type=int, default=0, help="of the random inputs")
    add("--only", metavar="NAMES", help="contenders by name, with commas; see --list")
    add("--rivals", metavar="DIR", action="append", default=[], help="a folder with other libraries; may be repeated")
    add("--memory", action=argparse.BooleanOptionalAction, default=True, help="measure peak extra memory")
    add("--output", type=Path, help="append JSON lines; ours are in benchmarks/results/<device>-linear_logprob.jsonl")
    add("--list", action="store_true", help="name the contenders and stop")
    add("--memory-of", metavar="NAME", help=argparse.SUPPRESS)
    return found


def read(argv: Sequence[str] | None) -> tuple[argparse.Namespace, Settings, list[Contender], list[str]]:
    """Return the options, what is run, the contenders and the passes. Ends the program where an option is wrong."""
    command = parser()
    given = command.parse_args(argv)
    for name, value in DEFAULTS[given.device].items():
        setattr(given, name, value if getattr(given, name) is None else getattr(given, name))
    everyone = contenders(given.chunk_tokens)
    names = given.only.split(",") if given.only else [each.name for each in everyone]
    _known(command, "--only", names, [each.name for each in everyone])
    _known(command, "--passes", given.passes.split(","), list(PASSES))
    _known(command, "--dtype", [given.dtype], list(DTYPES))
    shape = Shape(
        tokens=given.tokens,
        width=given.width,
        vocab=given.vocab,
        dtype=DTYPES[given.dtype],
        logit_std=given.logit_std,
    )
    settings = Settings(
        device=given.device,
        shape=shape,
        entropy=given.entropy,
        rounds=given.rounds,
        warmups=given.warmups,
        seed=given.seed,
        memory=given.memory,
        chunk_tokens=given.chunk_tokens,
    )
    passes = [PASSES[name] for name in given.passes.split(",")]
    return given, settings, [each for each in everyone if each.name in names], passes


def _known(command: argparse.ArgumentParser, option: str, given: list[str], known: list[str]) -> None:
    for name in given:
        if name not in known:
            command.error(f"{option}: no {name!r}; there are {', '.join(known)}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run, print, write. Returns 1 where one of ours is missing, fails or is wrong."""
    given, settings, chosen, passes = read(argv)
    sys.path.extend(given.rivals)
    torch.set_num_threads(given.threads)
    if given.list:
        print("\n".join(f"{each.name:22}{each.what}" for each in contenders(given.chunk_tokens)))
        return 0
    if given.memory_of:
        print(json.dumps({"extra_bytes": _memory_here(settings, chosen, given.memory_of, passes[0])}))
        return 0
    again = list(argv) if argv is not None else sys.argv[1:]
    rows: list[Row] = []
    for found in run(settings, chosen, passes, partial(_memory_elsewhere, again), say):
        rows += found
        if given.output:
            write_lines(given.output, found)
    say("")
    print(table(rows))
    print(asked_and_reached(asks(rows, given.device)))
    print(quietness(rows))
    ours = {each.name for each in chosen if each.ours}
    return int(any(not row.right for row in rows if row.contender in ours))


def _memory_here(settings: Settings, chosen: Sequence[Contender], name: str, passes: str) -> int:
    compute = next(each for each in chosen if each.name == name).load()
    problem = Problem(settings)
    return harness.peak_extra_bytes(problem.step(compute, passes), problem.device)


def _memory_elsewhere(arguments: Sequence[str], name: str, passes: str) -> int | None:
    short = next(key for key, value in PASSES.items() if value == passes)
    try:
        found = harness.run_fresh("benchmarks.linear_logprob", [*arguments, "--memory-of", name, "--passes", short])
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
    share = max(float(str(row.environment["foreign_cpu_share"])) for row in rows)
    return f"other processes used {share:.0%} of this machine's CPU time meanwhile" + (
        "" if share < 0.05 else ": times are not to be quoted"
    )


# ---- what the numbers are held to ------------------------------------------------------------------------------------


def asks(rows: Sequence[Row], device: str) -> list[Ask]:
    """The demands on this device. They are meant for its default shape, with entropy."""
    return _cuda_asks(rows) if device == "cuda" else _cpu_asks(rows)


def _cpu_asks(rows: Sequence[Row]) -> list[Ask]:
    ours, plain = (find(rows, name, BACKWARD) for name in ("linear_logprob", "materialised"))
    forward, chunked = (find(rows, name, FORWARD) for name in ("linear_logprob", "chunked"))
    memory = ours.extra_bytes / plain.extra_bytes if ours and plain and ours.extra_bytes and plain.extra_bytes else None
    return [
        Ask(text="forward+backward, speed-up over materialised", figure=ratio(plain, ours), limit=1.0, at_least=True),
        Ask(text="forward+backward, extra memory over that of materialised", figure=memory, limit=0.1, at_least=False),
        Ask(text="forward, speed-up over chunked PyTorch", figure=ratio(chunked, forward), limit=1.25, at_least=True),
    ]


def _cuda_asks(rows: Sequence[Row]) -> list[Ask]:
    forward = find(rows, "linear_logprob", FORWARD)
    ours = _fastest(rows, "linear_logprob", "linear_cross_entropy")
    cce, liger = _fastest(rows, "cce", "cce_exact"), _fastest(rows, "liger", "liger_fp32")
    right = forward if forward and forward.right else None
    workspace = None
    if right and right.extra_bytes is not None and right.result_bytes is not None:
        workspace = (right.extra_bytes - right.result_bytes) / 1e6
    milliseconds = ours.timing.median * 1e3 if ours and ours.timing else None
    rate = right.tflops if right else None
    return [
        Ask(text="forward, useful rate", figure=rate, limit=700, at_least=True, unit=" TFLOP/s"),
        Ask(text="forward, workspace", figure=workspace, limit=8, at_least=False, unit=" MB"),
        Ask(text="exact forward+backward", figure=milliseconds, limit=40, at_least=False, unit=" ms"),
        Ask(text="forward+backward, speed-up over CCE", figure=ratio(cce, ours), limit=1.3, at_least=True),
        Ask(text="forward+backward, speed-up over Liger", figure=ratio(liger, ours), limit=2.0, at_least=True),
    ]


def _fastest(rows: Sequence[Row], *names: str) -> Row | None:
    """The fastest of the named contenders' right rows with the backward pass."""
    right = [row for name in names if (row := find(rows, name, BACKWARD)) and row.right and row.timing]
    return min(right, key=lambda row: row.timing.median if row.timing else float("inf"), default=None)


if __name__ == "__main__":
    sys.exit(main())
