"""How the cost of a training step grows with layers, width, sequence and vocabulary; plain PyTorch beside it.

`python -m benchmarks.pretrain.growth --output FILE` takes some minutes on two cores. Each setting is varied by itself,
with as many tokens in a step everywhere. What stays as it is, such as the output layer beside more layers, does so in
the count of FLOPs too: that count's exponent stands beside the measured ones. `--from FILE` takes records in place of
runs.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import synpro_engine  # noqa: F401 - first: it prepares Megatron's import
from benchmarks.common.command import command_line
from benchmarks.common.environment import environment
from benchmarks.common.records import read_lines, write_lines
from benchmarks.common.tables import markdown
from benchmarks.pretrain.case import ADAMW, Case
from benchmarks.pretrain.contenders import OURS, PLAIN
from benchmarks.pretrain.measure import measure
from benchmarks.pretrain.show import exponent
from synpro_engine.cli.ending import run_script
from synpro_engine.dist import ParallelConfig, launched
from synpro_engine.report.svg import SERIES

BENCH = "pretrain_growth"
TOKENS = 2048
AXES: Mapping[str, Sequence[int]] = {
    "layers": (2, 4, 8, 16),
    "width": (128, 256, 512, 1024),
    "sequence": (128, 256, 512, 1024, 2048),
    "vocabulary": (2048, 8192, 32768, 131072),
}
_BASE = {"layers": 4, "width": 256, "sequence": 256, "vocabulary": 4096}

Record = Mapping[str, Any]


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure or read, print, write, draw; returns the exit status."""
    parser = command_line("pretrain.growth", __doc__, "--output")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw the seconds of a step along each setting")
    parser.add_argument("--from", dest="given", type=Path, metavar="FILE", help="records to show, in place of runs")
    parser.add_argument("--rounds", type=int, default=5, help="timed steps of each (default: %(default)s)")
    given = parser.parse_args(arguments)
    records = read_lines(given.given) if given.given else []
    if not given.given:
        for record in _measured(given.rounds):
            records.append(record)
            if given.output:
                write_lines(given.output, [record])
    print(table(records))
    if given.plot:
        draw(records, given.plot)
    return 0


def case(axis: str, value: int) -> Case:
    """A step of `TOKENS` tokens of a model that differs from the others along one axis."""
    shape = _BASE | {axis: value}
    width, length = shape["width"], shape["sequence"]
    heads = width // 64
    settings = {
        "model.layers": shape["layers"], "model.d_model": width, "model.ffn": 4 * width, "model.heads": heads,
        "model.kv_heads": heads, "model.vocab_size": shape["vocabulary"], "model.seq_len": length,
        "pretrain.micro_batch": TOKENS // length, "pretrain.global_batch": TOKENS // length,
    }  # fmt: skip
    return Case("quickstart", (ADAMW, *(f"{key}={one}" for key, one in settings.items())), 1)


def _measured(rounds: int) -> Iterator[Record]:
    with launched(ParallelConfig()) as topology:
        where = environment(topology.device)
        for axis, value in ((axis, value) for axis, values in AXES.items() for value in values):
            step = case(axis, value)
            for found in measure(step, (OURS, PLAIN), topology, rounds=rounds, warmups=1, parts=False):
                yield {
                    "bench": BENCH, "axis": axis, "value": value, "flops": step.flops_per_token[0] * step.tokens,
                    **found, "environment": where,
                }  # fmt: skip


def _seconds(records: Sequence[Record], axis: str, contender: str) -> dict[int, float]:
    return {
        one["value"]: one["timing"]["median"]
        for one in records
        if (one["axis"], one["contender"], one["status"]) == (axis, contender, "ok")
    }


def _flops(records: Sequence[Record], axis: str) -> dict[int, float]:
    return {one["value"]: one["flops"] for one in records if one["axis"] == axis}


def _power(of: Mapping[int, float]) -> str:
    return f"{exponent(list(of), list(of.values())):.2f}" if len(of) > 1 else ""


def table(records: Sequence[Record]) -> str:
    """By axis: the exponents of counted FLOPs and of seconds, and the ratio at either end."""
    rows = []
    for axis in AXES:
        ours, plain = _seconds(records, axis, OURS), _seconds(records, axis, PLAIN)
        both = sorted(ours.keys() & plain.keys())
        if both:
            ends = [f"{plain[end] / ours[end]:.2f}" for end in (both[0], both[-1])]
            powers = (_power(_flops(records, axis)), _power(ours), _power(plain))
            rows.append((axis, f"{both[0]:,} to {both[-1]:,}", *powers, " to ".join(ends)))
    return markdown(("what grows", "from, to", "FLOPs, power", "ours", "plain PyTorch", "speed, times plain"), rows)


def draw(records: Sequence[Record], path: Path) -> None:
    """Write a PNG: seconds a step along each axis, with the line on which time would grow as the FLOPs do."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 3.4), layout="constrained")
    for axes, axis in zip(figure.subplots(1, len(AXES), sharey=True), AXES, strict=True):
        for name, colour in zip((OURS, PLAIN), SERIES, strict=False):
            of = _seconds(records, axis, name)
            axes.loglog(list(of), list(of.values()), "o-", color=colour, label=f"{name}: {_power(of)}")
        ours, flops = _seconds(records, axis, OURS), _flops(records, axis)
        if ours:
            last = max(ours)
            line = [ours[last] * flops[value] / flops[last] for value in ours]
            axes.loglog(list(ours), line, ":", color="gray", label=f"FLOPs: {_power(flops)}")
        axes.set_xticks(list(ours), [f"{value:,}" for value in ours], fontsize=8)
        axes.minorticks_off()
        axes.set(xlabel=axis)
        axes.legend(frameon=False, fontsize=8)
        axes.grid(visible=True, alpha=0.3)
    figure.axes[0].set_ylabel("seconds a step")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    sys.exit(run_script(main))
