"""The figures of the influence benchmark, from its records alone.

Knows standings and colours; measures nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

from benchmarks.common.rank_correlation import Rho, spearman
from benchmarks.influence_truth.results import Results
from benchmarks.influence_truth.scores import probe_name
from benchmarks.influence_truth.standings import Standing
from benchmarks.influence_truth.texts import KINDS

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

COLOURS = {"two_forward": "C0", "dot": "C1", "step": "C2", "oracle": "C4", "baseline": "0.6"}


def paper(results: Results, steps: int) -> str:
    """The paper's estimator, with a probe of so many steps; its momentum is kept where the optimizer has one for it."""
    kept = results.settings.walks_keep_momentum
    return f"two_forward, {probe_name(steps, keep_momentum=kept, weight_decay=0.1)}"


def best(ranked: Sequence[Standing]) -> Standing:
    """The estimator that follows a single step best; neither an oracle nor a baseline."""
    return max((v for v in ranked if v.group in ("two_forward", "dot", "step")), key=lambda v: v.alone.value)


def draw_truth(path: Path, results: Results, ranked: Sequence[Standing]) -> None:
    """The paper's estimator and the best one against a single step, and all rank correlations with intervals."""
    figure = plt.figure(figsize=(17, 10), layout="constrained")
    grid = figure.add_gridspec(2, 4, width_ratios=(1.4, 1, 1, 1))
    by_name = {row["estimator"]: row["values"] for row in results.scores if row["every"] == 1}
    for place, name in enumerate((paper(results, results.settings.probe_steps[-1]), best(ranked).estimator)):
        _scatter(figure.add_subplot(grid[place, 0]), results, name, by_name[name])
    shown = sorted((v for v in ranked if v.group != "oracle"), key=lambda v: v.alone.value)
    panels = {
        "one step on the candidate alone": [v.alone for v in shown],
        "one step among mates": [v.among_mates for v in shown],
        f"{len(results.subsets)} half subsets (LDS)": [v.lds for v in shown if v.lds],
    }
    first: Axes | None = None
    for place, (title, found) in enumerate(panels.items(), 1):
        axes = figure.add_subplot(grid[:, place], sharey=first)
        _bars(axes, title, shown, found)
        axes.tick_params(labelleft=first is None)
        first = first or axes
    _save(figure, path)


def _scatter(axes: Axes, results: Results, name: str, values: Sequence[float]) -> None:
    kinds, drops = results.kinds(), 1e3 * results.truth("alone")
    for kind in KINDS:
        own = kinds == kind
        axes.plot(np.array(values)[own], drops[own], ".", markersize=4, label=kind)
    axes.set_title(f"{name}\nSpearman {spearman(values, drops):.3f}", fontsize=9)
    axes.set_xlabel("score")
    axes.set_ylabel("drop of the reference loss\nby one step, millinats")
    axes.legend(fontsize=7)


def _bars(axes: Axes, title: str, ranked: Sequence[Standing], found: Sequence[Rho]) -> None:
    values, places = np.array([each.value for each in found]), np.arange(len(ranked))
    spread = np.abs(np.array([[each.low, each.high] for each in found]).T - values)
    axes.barh(places, values, xerr=spread, color=[COLOURS[v.group] for v in ranked], error_kw={"linewidth": 0.8})
    axes.set_yticks(places, [v.estimator for v in ranked], fontsize=7)
    axes.set_title(title, fontsize=9)
    axes.set_xlabel("Spearman's rho")
    axes.axvline(0.0, color="black", linewidth=0.6)


def draw_sweep(path: Path, results: Results) -> None:
    """Relative error of the estimators over the size of the displacement."""
    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    sizes = [row["relative_size"] for row in results.sweep]
    for name in results.sweep[0]["errors"]:
        axes.loglog(sizes, [row["errors"][name] for row in results.sweep], ".-", label=name)
    axes.set_xlabel("size of the displacement over that of theta")
    axes.set_ylabel("relative error over candidates, against fp64")
    axes.axhline(1.0, color="0.6", linewidth=0.6)
    axes.legend(fontsize=8)
    _save(figure, path)


def _save(figure: Any, path: Path) -> None:
    # Without the date and the library's version in it, the same records give the same file.
    figure.savefig(path, dpi=100, metadata={"Software": None})
    plt.close(figure)
