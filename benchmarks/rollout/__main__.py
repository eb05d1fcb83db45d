"""Rollouts of the embedded generator: this engine's sampler beside transformers' `generate`, and the limit of a step.

`python -m benchmarks.rollout` samples the same prompts in turns, with the same settings and threads, and notes the
ratio of each turn; then the time of a decoding step beside what reading and multiplying the weights takes; then the
most memory that each has in a process of its own. Exit status 1 where what was asked is not reached, or where ours has
become slower than `--against`.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from argparse import Namespace
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

import synpro_engine  # noqa: F401 - first: it prepares Megatron's import
from benchmarks.common.against import Earlier, is_commit, told, with_commit
from benchmarks.common.command import again, command_line
from benchmarks.common.environment import QUIET, ForeignLoad, environment, version
from benchmarks.common.harness import cpu_clock, interleave, summarise
from benchmarks.common.processes import alone, run_fresh
from benchmarks.common.records import Ask, asked_and_reached, write_lines
from benchmarks.common.tables import aligned
from benchmarks.rollout.contenders import NAMES, Shape, export, load, ours, prompts, rival, theirs
from benchmarks.rollout.limit import shares
from synpro_engine.config import UserError
from synpro_engine.data.tokenizer import PublishedTokenizer
from synpro_engine.dist import ParallelConfig, Topology, launched
from synpro_engine.model.model import Model

ASKED = {"4 x 8 x 64": 4.0, "1 x 8 x 64": 3.5, "16 x 1 x 64": 2.5}
"""Times transformers' speed, by prompts x samples x tokens."""
SHARE = 0.6
"""Of the limit of a decoding step."""
Record = Mapping[str, object]


def speed(model: Model, tokenizer: PublishedTokenizer, other: object, shape: Shape, rounds: int) -> Record:
    """Both in turns: tokens/s, the ratio of each turn, and where our time went."""
    asked = prompts(shape, tokenizer)
    rollout, sampler = ours(model, asked, shape)
    prefill: list[float] = []

    def mine(turn: int) -> None:
        rollout(turn)
        prefill.append(sampler.stats.prefill_seconds)

    load_of_others = ForeignLoad()
    steps = {"synpro": mine, "transformers": theirs(other, asked, shape)}
    samples = interleave(steps, cpu_clock, rounds=rounds, warmups=1, progress=_say)
    timings = {name: summarise(its) for name, its in samples.items()}
    ratios = [b.seconds / a.seconds for a, b in zip(samples["synpro"], samples["transformers"], strict=True)]
    return {
        "part": "speed",
        "shape": str(shape),
        "prompt": shape.prompt,
        "timings": {name: vars(timing) for name, timing in timings.items()},
        "tokens_per_s": {name: shape.tokens / timing.median for name, timing in timings.items()},
        "ratios": ratios,
        "ratio": statistics.median(ratios),
        # What holds on a machine that others use too, with one thread: threads that wait for each other spin.
        "cpu_ratio": statistics.median(
            b.cpu_seconds / a.cpu_seconds for a, b in zip(samples["synpro"], samples["transformers"], strict=True)
        ),
        "prefill_seconds": statistics.median(prefill[-rounds:]),
        "foreign_cpu_share": load_of_others.share(),
    }


def memory(name: str, exported: Path, shape: str, prompt: int) -> Record:
    """Peak resident memory of a process that samples once, weights included."""
    _say(f"memory: {name}, {shape}")
    figures = run_fresh(
        "benchmarks.rollout.memory", [name, str(exported), shape, str(prompt), str(torch.get_num_threads())]
    )
    return {"part": "memory", "contender": name, "shape": str(Shape.read(shape, prompt)), "prompt": prompt, **figures}


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def measure(given: Namespace, topology: Topology, folder: Path) -> Iterator[Record]:
    """The records, part by part."""
    exported = export(topology, folder)
    if "speed" in given.parts or "limit" in given.parts:
        (folder / "own").mkdir()
        model, tokenizer = load(topology, folder / "own")
        if "speed" in given.parts:
            other = rival(exported)
            for text in given.shapes.split(","):
                yield speed(model, tokenizer, other, Shape.read(text, given.prompt), given.rounds)
            del other
        if "limit" in given.parts:
            others = ForeignLoad()
            rows = [int(count) for count in given.rows.split(",")]
            found = shares(model, tokenizer, rows, given.prompt, given.rounds, _say)
            yield from ({**record, "foreign_cpu_share": others.share()} for record in found)
    if "memory" in given.parts:
        for text in given.shapes.split(","):
            yield from (memory(name, exported, text, given.prompt) for name in NAMES)


def table(records: Sequence[Record]) -> str:
    """What was measured, for people."""
    headings = ("what", "of", "tokens/s", "ratio", "of the turns", "of CPU time", "ms a step", "limit ms", "share")
    lines: list[tuple[str, ...]] = [(*headings, "peak MB")]
    for record in records:
        if record["part"] == "speed":
            rates: Mapping[str, float] = record["tokens_per_s"]  # pyright: ignore[reportAssignmentType]
            ratios: Sequence[float] = record["ratios"]  # pyright: ignore[reportAssignmentType]
            shape = str(record["shape"])
            spread = f"{min(ratios):.2f}-{max(ratios):.2f}"
            ratio = f"{record['ratio']:.2f}"
            cpu = f"{record['cpu_ratio']:.2f}"
            lines.append((shape, "synpro", f"{rates['synpro']:.1f}", ratio, spread, cpu, "", "", "", ""))
            lines.append((shape, "transformers", f"{rates['transformers']:.1f}", *[""] * 7))
        elif record["part"] == "limit":
            step, limit = (1e3 * float(str(record[key])) for key in ("step_seconds", "limit_seconds"))
            share = f"{record['share']:.0%}"
            times = (f"{step:.1f}", f"{limit:.1f}", share, "")
            lines.append((f"a step of {record['rows']}", "synpro", *[""] * 4, *times))
        else:
            peak = f"{float(str(record['peak_bytes'])) / 1e6:.0f}"
            lines.append((str(record["shape"]), str(record["contender"]), *[""] * 7, peak))
    return "\n".join(aligned(lines, right=range(2, len(lines[0]))))


def figures(records: Iterable[Mapping[str, Any]]) -> dict[str, float | None]:
    """Our own speeds by shape or rows, and tokens of a prompt: tokens a second, and steps."""
    found: dict[str, float | None] = {}
    for record in records:
        if record.get("bench") != "rollout":
            continue
        if record["part"] == "speed":
            found[f"{record['shape']}, prompts of {record['prompt']}: tokens/s"] = record["tokens_per_s"]["synpro"]
        elif record["part"] == "limit":
            found[f"a step of {record['rows']}, prompts of {record['prompt']}: steps/s"] = 1 / record["step_seconds"]
    return found


def asks(records: Sequence[Record]) -> list[Ask]:
    """What is asked of the sampler."""
    found = []
    for record in records:
        if record["part"] == "speed" and record["shape"] in ASKED:
            text, limit = f"times transformers' speed, {record['shape']}", ASKED[str(record["shape"])]
            found.append(Ask(text=text, figure=float(str(record["ratio"])), limit=limit, at_least=True))
        elif record["part"] == "limit":
            text = f"of the limit of a step of {record['rows']} rows"
            found.append(Ask(text=text, figure=float(str(record["share"])), limit=SHARE, at_least=True))
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns the exit status."""
    parser = command_line("rollout", __doc__, "--output", "--against", "--turns")
    add = parser.add_argument
    add("--shapes", default="4x8x64,1x8x64,16x1x64", help="prompts x samples x tokens (default: %(default)s)")
    add("--prompt", type=int, default=128, help="tokens of a prompt on average (default: %(default)s)")
    add("--rows", default="1,8,32", help="of a step that is held to its limit (default: %(default)s)")
    add("--threads", type=int, default=torch.get_num_threads())
    add("--rounds", type=int, default=5)
    add("--parts", default="speed,limit,memory", help="default: %(default)s")
    given = parser.parse_args(arguments)
    records: list[Record] = []
    try:
        if is_commit(given.against):
            return told(with_commit(given.against, "benchmarks.rollout", again(arguments), figures, turns=given.turns))
        earlier = Earlier.read(given.against)
        with launched(ParallelConfig()) as topology, tempfile.TemporaryDirectory() as name:
            alone(topology.world_size)
            torch.set_num_threads(given.threads)  # after the launch, which has a number of its own
            where = {**environment(torch.device("cpu")), "transformers": version("transformers")}
            for record in measure(given, topology, Path(name)):
                records.append({"bench": "rollout", **record, "environment": where})
                if given.output:
                    write_lines(given.output, records[-1:])
        print(table(records))
        busiest = max((float(str(record.get("foreign_cpu_share", 0))) for record in records), default=0.0)
        if busiest > QUIET:
            print(f"Other processes used up to {busiest:.0%} of the machine: times are not to be quoted, ratios hold.")
        asked = asks(records)
        print(asked_and_reached(asked))
        slower = told(earlier.compared(records, figures)) if earlier else 0
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return int(slower or not all(ask.reached for ask in asked))


if __name__ == "__main__":
    sys.exit(main())
