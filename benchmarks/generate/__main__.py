"""How fast a recipe's generator samples here, at its own size with random weights, and what it takes of the memory.

`python -m benchmarks.generate` takes a GPU some minutes. What it prints is what `synpro plan --sampled-per-s` wants of
one device. Exit status 1 where sampling has become slower than `--against`.
"""

from __future__ import annotations

import gc
import sys
from argparse import Namespace
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import torch

import synpro_engine  # noqa: F401 - first: it prepares Megatron's import
from benchmarks.common.against import Earlier, is_commit, told, with_commit
from benchmarks.common.command import again, command_line
from benchmarks.common.environment import environment
from benchmarks.common.records import write_lines
from benchmarks.common.settings import shape_of
from benchmarks.common.tables import aligned
from benchmarks.generate.sampling import OLMO2_1B, generator, measure
from synpro_engine.config import UserError
from synpro_engine.cycle import load_recipe
from synpro_engine.dist import ParallelConfig, Topology, launched, say

Record = Mapping[str, object]


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, write. Returns 2 after a user's fault."""
    parser = command_line("generate", __doc__, "--output", "--against", "--turns")
    add = parser.add_argument
    add("--recipe", default="synpro-1.1b", help="whose generator samples (default: %(default)s)")
    add("overrides", nargs="*", metavar="KEY=VALUE", help="settings that replace the recipe's")
    add("--rows", default="64,256", help="sequences that are sampled at once (default: %(default)s)")
    add("--prompt", type=int, default=1024, help="tokens of a prompt (default: %(default)s)")
    add("--new", type=int, default=128, help="tokens that are sampled behind it (default: %(default)s)")
    add("--graphs", action="store_true", help="once more with decoding steps as CUDA graphs (on a CPU there are none)")
    add("--top-p", default="0.9,1.0", help="of sampling (default: %(default)s)")
    add("--profile", type=Path, metavar="DIR", help="write there what a GPU's time goes to, a table for each part")
    given = parser.parse_args(argv)

    def profile(name: str, table: str) -> None:
        given.profile.mkdir(parents=True, exist_ok=True)
        (given.profile / f"{name}.txt").write_text(table, encoding="utf-8")

    try:
        if is_commit(given.against):
            return told(with_commit(given.against, "benchmarks.generate", again(argv), figures, turns=given.turns))
        earlier = Earlier.read(given.against)
        with launched(ParallelConfig()) as topology:
            records = list(_records(given, topology, profile if given.profile and topology.is_main else None))
        if not topology.is_main:
            return 0
        print(table(records))
        return told(earlier.compared(records, figures)) if earlier else 0
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _records(given: Namespace, topology: Topology, profile: Callable[[str, str], None] | None) -> Iterator[Record]:
    """Records in turn, each written as soon as it is there: a fault in one leaves what was before."""
    recipe = load_recipe(given.recipe, given.overrides)
    shape, name = recipe.generator.model, recipe.name
    if shape is None:
        # Of a generator from files only the shape is needed, and OLMo-2 1B's is that of the large recipes.
        shape, name = OLMO2_1B, "OLMo-2 1B"
    where, model = environment(topology.device), generator(shape, topology)
    for rows in map(int, given.rows.split(",")):
        for top_p in map(float, given.top_p.split(",")):
            for graphs in (False, True)[: 1 + given.graphs]:
                say(topology, f"{name}: {rows} sequences at top_p {top_p}{', graphs' * graphs}")
                sizes = {"prompt": given.prompt, "new": given.new, "profile": profile}
                found = measure(model, rows=rows, top_p=top_p, graphs=graphs, **sizes)
                about = {"model": name, "shape": shape_of(shape), "dtype": str(model.dtype).removeprefix("torch.")}
                record = {"bench": "generate", **about, **found, "environment": where}
                if given.output and topology.is_main:
                    write_lines(given.output, [record])
                yield record
                gc.collect()
                if topology.device.type == "cuda":
                    torch.cuda.empty_cache()


def figures(records: Iterable[Record]) -> dict[str, float | None]:
    """Tokens a second that are sampled, and that are read of prompts, by model and sizes."""
    rates = {"sampled": "new_tokens_per_s", "read": "prompt_tokens_per_s"}
    return {
        f"{record['model']} ({record.get('shape')}, {record.get('dtype')}), {record['rows']} sequences of"
        f" {record['prompt']} + {record['new']} at top_p {record['top_p']}{', graphs' if record['graphs'] else ''}:"
        f" tokens/s {what}": float(str(record[key]))
        for record in records
        if record.get("bench") == "generate"
        for what, key in rates.items()
    }


def table(records: Sequence[Record]) -> str:
    """What was measured, for people."""
    lines: list[tuple[str, ...]] = [
        ("model", "sequences", "top_p", "graphs", "tokens/s", "ms a step", "reading a prompt, tokens/s", "peak GB")
    ]
    for record in records:
        found = {key: float(value) for key, value in record.items() if isinstance(value, int | float)}
        lines.append(
            (
                str(record["model"]), str(record["rows"]), str(record["top_p"]), "yes" if record["graphs"] else "-",
                f"{found['new_tokens_per_s']:.0f}",
                f"{found['step_seconds'] * 1e3:.1f}", f"{found['prompt_tokens_per_s']:.0f}",
                f"{found['peak_bytes'] / 1e9:.2f}" if "peak_bytes" in found else "-",
            )
        )  # fmt: skip
    return "\n".join(aligned(lines, right=range(1, len(lines[0]))))


if __name__ == "__main__":
    sys.exit(main())
