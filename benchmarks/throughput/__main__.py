"""How fast a recipe's models train and sample here, and what they take of the device's memory.

`python -m benchmarks.throughput` takes a GPU some minutes. What it prints is what `synpro plan --tokens-per-s` and
`--sampled-per-second` want of one device.
"""

from __future__ import annotations

import gc
import sys
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import torch

import synpro_engine  # noqa: F401 - first: it prepares Megatron's import
from benchmarks.common.command import command_line
from benchmarks.common.environment import environment
from benchmarks.common.records import write_lines
from benchmarks.common.tables import aligned
from benchmarks.throughput import sampling, training
from synpro_engine.config import UserError
from synpro_engine.cycle import load_recipe
from synpro_engine.dist import ParallelConfig, Topology, launched, say

Record = Mapping[str, object]
RECIPES = ("synpro-400m", "synpro-1.1b")


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, write. Returns 2 after a user's fault."""
    parser = command_line("throughput", __doc__, "--output")
    add = parser.add_argument
    add(
        "--recipe",
        action="append",
        help="a recipe whose pretrained model trains; may be repeated (default: synpro-400m, synpro-1.1b)",
    )
    add("overrides", nargs="*", metavar="KEY=VALUE", help="settings that replace the recipes'")
    add("--micro-batches", type=int, default=4, help="of a timed step (default: %(default)s)")
    add("--rounds", type=int, default=5, help="timed steps (default: %(default)s)")
    add("--rows", default="64,256", help="sequences that are sampled at once (default: %(default)s)")
    add("--prompt", type=int, default=1024, help="tokens of a prompt (default: %(default)s)")
    add("--new", type=int, default=128, help="tokens that are sampled behind it (default: %(default)s)")
    add("--top-p", default="0.9,1.0", help="of sampling (default: %(default)s)")
    add("--parts", default="train,sample", help="default: %(default)s")
    add("--profile", type=Path, metavar="DIR", help="write there what the device's time goes to, a table for each part")
    given = parser.parse_args(argv)

    def profile(name: str, table: str) -> None:
        given.profile.mkdir(parents=True, exist_ok=True)
        (given.profile / f"{name}.txt").write_text(table, encoding="utf-8")

    try:
        with launched(ParallelConfig()) as topology:
            records = list(_records(given, topology, profile if given.profile else None))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(table(records))
    return 0


def _records(given: Namespace, topology: Topology, profile: Callable[[str, str], None] | None) -> Iterator[Record]:
    """Records in turn, each written as soon as it is there: a fault in one leaves what was before."""
    recipes = [load_recipe(name, given.overrides) for name in given.recipe or RECIPES]
    counts = {"micro_batches": given.micro_batches, "rounds": given.rounds}
    tasks: list[tuple[str, partial[Record]]] = []
    if "train" in given.parts:
        tasks += [
            (recipe.name, partial(training.measure, recipe, topology, **counts, profile=profile)) for recipe in recipes
        ]
    if "sample" in given.parts:
        shape = recipes[-1].generator.model
        # Of a generator from files only the shape is needed, and OLMo-2 1B's is that of the large recipes.
        name, shape = (recipes[-1].name, shape) if shape else ("OLMo-2 1B", sampling.OLMO2_1B)
        sizes = {"prompt": given.prompt, "new": given.new, "profile": profile}
        tasks += [
            (name, partial(sampling.measure, shape, topology, rows=int(rows), top_p=float(top_p), **sizes))
            for rows in given.rows.split(",")
            for top_p in given.top_p.split(",")
        ]
    where = environment(topology.device)
    for name, task in tasks:
        say(topology, f"{name}: {task.func.__module__.rpartition('.')[2]}")
        record = {"bench": "throughput", "model": name, **task(), "environment": where}
        if given.output:
            write_lines(given.output, [record])
        yield record
        gc.collect()
        if topology.device.type == "cuda":
            torch.cuda.empty_cache()


def table(records: Sequence[Record]) -> str:
    """What was measured, for people."""
    lines: list[tuple[str, ...]] = [
        ("model", "what", "tokens/s", "MFU", "ms a step", "peak GB", "planned GB", "reading a prompt, tokens/s")
    ]
    for record in records:
        found = {key: float(str(value)) for key, value in record.items() if isinstance(value, int | float)}
        peak = f"{found['peak_bytes'] / 1e9:.2f}" if "peak_bytes" in found else "-"
        if record["part"] == "train":
            what = f"steps of {record['tokens_per_step']} tokens, {record['micro_batch']} rows at once"
            seconds = found["tokens_per_step"] / found["tokens_per_s"]
            ends = (peak, f"{found['planned_bytes'] / 1e9:.2f}", "-")
            rates = (f"{found['tokens_per_s']:.0f}", f"{found['mfu']:.1%}" if "mfu" in found else "-")
        else:
            what = f"{record['rows']} sequences at top_p {record['top_p']}"
            seconds = found["step_seconds"]
            ends = (peak, "-", f"{found['prompt_tokens_per_s']:.0f}")
            rates = (f"{found['new_tokens_per_s']:.0f}", "-")
        lines.append((str(record["model"]), what, *rates, f"{seconds * 1e3:.1f}", *ends))
    return "\n".join(aligned(lines, right=range(2, len(lines[0]))))


if __name__ == "__main__":
    sys.exit(main())
