"""The picture of the curves: a panel for each task, and two of what goes wrong and what shows it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from synpro_engine.report.svg import SERIES

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def draw(records: Sequence[Mapping[str, Any]], methods: Sequence[str], faults: Sequence[str], path: Path) -> None:
    """Write a PNG: means over seeds, with the band from the least to the greatest."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 8), layout="constrained")
    panels: list[Axes] = list(figure.subplots(2, 2).flat)
    for axes, task in zip(panels, ("length", "form"), strict=False):
        _lines(axes, records, task, methods, "reward")
        axes.set(title=f"reward: {task}", xlabel="step", ylim=(0, 1.02))
        axes.legend(fontsize=8, ncols=2, loc="lower right")
    for axes, (key, title) in zip(
        panels[2:],
        (("reward", "what goes wrong (form): reward"), ("entropy", "the same: entropy, nats a token")),
        strict=True,
    ):
        _lines(axes, records, "form", ["grpo", *faults], key)
        axes.set(title=title, xlabel="step")
        axes.legend(fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def _lines(axes: Axes, records: Sequence[Mapping[str, Any]], task: str, names: Sequence[str], key: str) -> None:
    for name, colour in zip(names, SERIES, strict=False):
        rows = [record[key] for record in records if record["task"] == task and record["name"] == name]
        if rows:
            value_SN = np.array(rows, dtype=float)  # null, while a critic warms up, is NaN
            steps = np.arange(1, value_SN.shape[1] + 1)
            axes.plot(steps, value_SN.mean(0), color=colour, label=name, linewidth=1.5)
            axes.fill_between(steps, value_SN.min(0), value_SN.max(0), color=colour, alpha=0.12, linewidth=0)
    axes.grid(visible=True, alpha=0.3)
