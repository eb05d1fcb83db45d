"""What the Triton kernels of linear_logprob, of its rivals and of the ops on rows take of three GPUs, without one.

`python -m benchmarks.static [--rivals DIR]` compiles ahead of time and reads the machine code: registers, spills,
shared memory, matrix instructions, and instructions in the innermost loops. It says nothing of time.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from functools import partial

import torch

from benchmarks.common.command import command_line
from benchmarks.common.environment import commit, version
from benchmarks.common.records import write_lines
from benchmarks.common.tables import aligned
from benchmarks.linear_logprob.problem import Shape
from benchmarks.static.cases import Case, cce, liger, ours, persistent
from benchmarks.static.machine_code import hot_loops
from synpro_kernels.testing.compile_only import SHARED_LIMIT, compile_for

BENCH = "static_table"
CAPABILITIES = (80, 90, 100)
HEADINGS = ("library", "kernel", "registers", "spills", "shared KiB", "matrix instructions", "all", "innermost loops")


def main(argv: Sequence[str] | None = None) -> int:
    """Compile, print, write. Returns 1 where one of ours spills or does not fit."""
    parser = command_line("static", __doc__, "--entropy", "--rivals", "--output")
    for name, default in (("tokens", 8192), ("width", 4096), ("vocab", 131072)):
        parser.add_argument(f"--{name}", type=int, default=default, help="default: %(default)s")
    parser.add_argument("--only", default="", metavar="TEXT", help="kernels whose name has this in it")
    given = parser.parse_args(argv)
    sys.path.extend(given.rivals)
    shape = Shape(tokens=given.tokens, width=given.width, vocab=given.vocab, dtype=torch.bfloat16)
    cases, missing = gather(shape, entropy=given.entropy)
    cases = [case for case in cases if given.only in case.does]
    if not cases:
        parser.error(f"--only: no kernel has {given.only!r} in its name")
    print(f"T {shape.tokens}, H {shape.width}, V {shape.vocab}, bf16; Triton {version('triton')}")
    rows = list(measure(cases))
    print(layout(rows))
    print("\n".join(missing))
    if given.output:
        settings = vars(shape) | {"dtype": "bfloat16", "entropy": given.entropy}
        same = {"settings": settings, "environment": origin()}
        write_lines(given.output, ({"bench": BENCH} | row | same for row in rows))
    return int(
        any(row["library"] == "ours" and (row["spills"] or row["stack_bytes"] or not row["fits"]) for row in rows)
    )


def gather(shape: Shape, *, entropy: bool) -> tuple[list[Case], list[str]]:
    """Return the kernels that are here, and a line for each library that is not."""
    cases, missing = list(ours(shape, entropy=entropy)), []
    for name, others in (("Gluon", partial(persistent, entropy=entropy)), ("CCE", cce), ("Liger", liger)):
        try:
            cases += others(shape)
        except ImportError as error:
            missing.append(f"not compiled: {name} is not here ({error})")
    return cases, missing


def measure(cases: Sequence[Case]) -> Iterator[dict[str, object]]:
    """Compile every kernel for every generation and read what it takes."""
    for capability in CAPABILITIES:
        for case in [case for case in cases if case.capability in (None, capability)]:
            print(f"sm_{capability}: {case.library}, {case.does}", file=sys.stderr, flush=True)
            with compile_for(capability):
                compiled = case.build(capability)
            found = compiled.resources
            yield {
                "capability": capability,
                "library": case.library,
                "kernel": case.does,
                "registers": found.registers,
                "spills": found.spill_loads + found.spill_stores,
                "stack_bytes": found.stack_bytes,
                "shared_bytes": found.shared_bytes,
                "fits": found.shared_bytes <= SHARED_LIMIT[capability],
                "tensor_memory_columns": found.tensor_memory_columns,
                "matrix_instructions": dict(found.matrix_instructions),
                "instructions": found.instructions,
                "loops": [loop._asdict() for loop in hot_loops(compiled.sass)],
            }


def layout(rows: Sequence[dict[str, object]]) -> str:
    """One block of aligned lines for each generation. Loops: instructions a turn, matrix instructions among them."""
    texts = aligned([HEADINGS, *map(_cells, rows)])
    for k in reversed(range(len(rows))):
        if k == 0 or rows[k]["capability"] != rows[k - 1]["capability"]:
            texts.insert(k + 1, f"sm_{rows[k]['capability']}")
    return "\n".join(texts)


def _cells(row: dict[str, object]) -> tuple[str, ...]:
    matrix, loops, shared = row["matrix_instructions"], row["loops"], row["shared_bytes"]
    assert isinstance(matrix, dict) and isinstance(loops, list) and isinstance(shared, int)
    return (
        str(row["library"]),
        str(row["kernel"]),
        str(row["registers"]),
        str(row["spills"]),
        f"{shared / 1024:.1f}" + ("" if row["fits"] else " TOO MUCH"),
        " ".join(f"{count} {name}" for name, count in matrix.items()) or "-",
        str(row["instructions"]),
        ", ".join(map(_loop_text, loops)) or "-",
    )


def _loop_text(loop: dict[str, object]) -> str:
    shape = f" of {loop['shape']}" if loop["shape"] else ""
    return f"{loop['instructions']} ({loop['matrix']}{shape})" if loop["matrix"] else str(loop["instructions"])


def origin() -> dict[str, object]:
    """What the kernels are compiled from and by."""
    packages = ("triton", "cut-cross-entropy", "liger-kernel")
    return {"versions": {name: found for name in packages if (found := version(name))}, **commit()}


if __name__ == "__main__":
    sys.exit(main())
