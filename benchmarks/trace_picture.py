"""A picture of one step of a trace: its parts on the time line, and below them the operations of each thread or stream.

synpro pretrain quickstart --profile 20
python -m benchmarks.trace_picture runs/quickstart/profile/pretrain-step-20-rank0.json.gz step.png
"""

from __future__ import annotations

import gzip
import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.common.command import command_line

_LANES = {"user_annotation": "parts", "cpu_op": "operations", "kernel": "kernels"}
_DEPTH = 3  # rows of a lane
_LEAST = 0.0015  # of the picture's width: what is narrower is left out


@dataclass(frozen=True)
class Bar:
    """One event: where it begins and how long it takes, in milliseconds from the picture's left edge."""

    lane: str
    row: int
    name: str
    begin: float
    length: float


def bars(events: Iterable[dict[str, Any]], step: str | None = None) -> list[Bar]:
    """Those of a step (None: the first one), by lane: a thread or stream; rows are what lies within what.

    Raises ValueError where the trace has no such step.
    """
    whole = [event for event in events if event.get("ph") == "X" and event.get("cat") in _LANES]
    steps = [event for event in whole if event["name"].startswith("step ") and event["cat"] == "user_annotation"]
    chosen = next((event for event in steps if step is None or event["name"] == f"step {step}"), None)
    if chosen is None:
        raise ValueError(f"no {'step' if step is None else f'step {step}'} in this trace")
    left, right = chosen["ts"], chosen["ts"] + chosen["dur"]
    lanes: dict[str, list[dict[str, Any]]] = {}
    for event in whole:
        if event is not chosen and left <= event["ts"] < right:
            lanes.setdefault(f"{_LANES[event['cat']]} {event['tid']}", []).append(event)
    found = []
    for lane, inside in lanes.items():
        ends: list[float] = []
        for event in sorted(inside, key=lambda event: (event["ts"], -event["dur"])):
            while ends and event["ts"] >= ends[-1]:
                ends.pop()
            if len(ends) < _DEPTH and event["dur"] >= _LEAST * (right - left):
                found.append(Bar(lane, len(ends), event["name"], (event["ts"] - left) / 1e3, event["dur"] / 1e3))
            ends.append(event["ts"] + event["dur"])
    return found


def draw(found: Sequence[Bar], path: Path) -> None:
    """Write the picture, in the format of the path's ending."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    lanes = sorted({(bar.lane, bar.row) for bar in found}, key=lambda lane: (not lane[0].startswith("parts"), lane))
    names = sorted({bar.name for bar in found})
    colours = colormaps["tab20"]
    figure = Figure(figsize=(14, 0.8 + 0.42 * len(lanes)), layout="constrained")
    axes = figure.subplots()
    end = max(bar.begin + bar.length for bar in found)
    for bar in found:
        height = -lanes.index((bar.lane, bar.row))
        colour = colours(names.index(bar.name) % 20)
        axes.barh(height, bar.length, left=bar.begin, height=0.92, color=colour, edgecolor="white", linewidth=0.3)
        name = bar.name.removeprefix("autograd::engine::evaluate_function: ").removeprefix("aten::")
        if bar.length / end > 0.0075 * len(name):  # as wide as its name
            axes.text(bar.begin + bar.length / 2, height, name, ha="center", va="center", fontsize=7)
    axes.set_yticks([-at for at in range(len(lanes))], [lane if row == 0 else "" for lane, row in lanes], fontsize=8)
    axes.set_xlim(0, end)
    axes.set_xlabel("ms")
    axes.spines[["top", "right", "left"]].set_visible(False)
    figure.savefig(path, dpi=110)


def main(argv: Sequence[str] | None = None) -> int:
    """Read, draw, write. Returns 2 after a user's fault."""
    parser = command_line("trace_picture", __doc__)
    parser.add_argument("trace", type=Path, help="a file of `--profile`, .json.gz or .json")
    parser.add_argument("picture", type=Path, help="what to write, such as step.png")
    parser.add_argument("--step", help="its number (default: the first in the trace)")
    given = parser.parse_args(argv)
    try:
        raw = given.trace.read_bytes()
        trace = json.loads(gzip.decompress(raw) if given.trace.suffix == ".gz" else raw)
        draw(bars(trace["traceEvents"], given.step), given.picture)
    except (OSError, ValueError, KeyError, TypeError) as error:
        print(f"error: {given.trace}: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
