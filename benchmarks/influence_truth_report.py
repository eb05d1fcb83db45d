"""The table and the figures of the influence benchmark, from its records alone.

Knows verdicts and how they look; measures nothing.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

from benchmarks.influence_truth_scores import probe_name
from benchmarks.influence_truth_statistics import Results, Rho, Verdict, spearman
from benchmarks.influence_truth_texts import KINDS
from synpro_engine.config import UserError

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

HEADINGS = ("estimator", "alone", "held out", "natural", "among mates", "LDS", "LDS held out", "cost", "made in")
COLOURS = {"two_forward": "C0", "dot": "C1", "step": "C2", "oracle": "C4", "baseline": "0.6"}


def table(verdicts: Sequence[Verdict]) -> str:
    """Markdown. Best first within each group."""
    lines = [f"| {' | '.join(HEADINGS)} |", f"|{'---|' * len(HEADINGS)}"]
    order = {group: place for place, group in enumerate(COLOURS)}
    ordered = sorted(verdicts, key=lambda v: (order[v.group], -v.alone.value))
    return "\n".join([*lines, *(f"| {' | '.join(_cells(verdict))} |" for verdict in ordered)])


def _cells(v: Verdict) -> tuple[str, ...]:
    return (
        v.estimator,
        _interval(v.alone),
        f"{v.held_out:.3f}",
        f"{v.natural:.3f}",
        _interval(v.among_mates),
        "" if v.lds is None else _interval(v.lds),
        "" if v.lds_held_out is None else f"{v.lds_held_out:.2f}",
        f"{v.cost:.1f}x" if v.cost else "",
        f"{v.made_in:.1f} s" if v.made_in else "",
    )


def _interval(found: Rho) -> str:
    return f"{found.value:.3f} ({found.low:.2f} to {found.high:.2f})"


def sweep_table(results: Results) -> str:
    """Markdown: relative errors of the estimators at each size of the displacement."""
    names = list(results.sweep[0]["errors"])
    lines = [
        f"| scale | size of v over theta | mean absolute influence | {' | '.join(names)} |",
        f"|{'---|' * (3 + len(names))}",
    ]
    for row in results.sweep:
        errors = " | ".join(f"{row['errors'][name]:.1e} ({row['spearman'][name]:.3f})" for name in names)
        share = "1" if row["scale"] == 1 else f"1/{round(1 / row['scale'])}"
        lines.append(f"| {share} | {row['relative_size']:.1e} | {row['mean_influence']:.1e} | {errors} |")
    return "\n".join(lines)


def conditions(results: Results) -> str:
    """One line: where and on what it was measured."""
    environment, theta = results.environment, results.theta
    kinds, counts = np.unique(results.kinds(), return_counts=True)
    of_kinds = ", ".join(
        f"{count} {kind}" for kind, count in sorted(zip(kinds, counts, strict=True), key=lambda x: -x[1])
    )
    return (
        f"Measured on {environment['device']}, {environment['threads']} thread, torch {environment['torch']}, commit "
        f"{str(environment['commit'])[:12]}; seed {results.settings.seed}; loss of the reference at theta "
        f"{theta['reference']:.3f} nats per token, of the held-out reference {theta['held_out']:.3f}; "
        f"{len(results.candidates)} candidates ({of_kinds}), {len(results.subsets)} subsets."
    )


def best(verdicts: Sequence[Verdict]) -> Verdict:
    """The estimator that follows a single step best; neither an oracle nor a baseline."""
    return max((v for v in verdicts if v.group in ("two_forward", "dot", "step")), key=lambda v: v.alone.value)


# ---- into the documentation ------------------------------------------------------------------------------------------


def write_docs(folder: Path, results: Results, verdicts: Sequence[Verdict]) -> None:
    """Draw the figures into `folder`/images and renew the marked blocks of `folder`/influence.md, where it is."""
    images, page = folder / "images", folder / "influence.md"
    images.mkdir(parents=True, exist_ok=True)
    draw_truth(images / "influence_truth.png", results, verdicts)
    draw_sweep(images / "influence_agreement.png", results)
    blocks = {"conditions": conditions(results), "truth": table(verdicts), "agreement": sweep_table(results)}
    if page.exists():
        text = page.read_text(encoding="utf-8")
        for name, block in blocks.items():
            text = _renewed(text, name, block, page)
        page.write_text(text, encoding="utf-8")


def _renewed(text: str, name: str, block: str, page: Path) -> str:
    start, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
    pattern = re.compile(f"{re.escape(start)}.*?{re.escape(end)}", re.DOTALL)
    if len(pattern.findall(text)) != 1:
        raise UserError(f"{page}: it needs one block between `{start}` and `{end}`")
    return pattern.sub(lambda _: f"{start}\n{block}\n{end}", text)


# ---- figures ---------------------------------------------------------------------------------------------------------


def draw_truth(path: Path, results: Results, verdicts: Sequence[Verdict]) -> None:
    """The paper's estimator and the best one against a single step, and all rank correlations with intervals."""
    figure = plt.figure(figsize=(15, 11), layout="constrained")
    grid = figure.add_gridspec(2, 3, width_ratios=(1.1, 1, 1))
    by_name = {row["estimator"]: row["values"] for row in results.scores if row["every"] == 1}
    paper = probe_name(results.settings.probe_steps[-1], keep_momentum=True, weight_decay=0.1)
    for place, name in enumerate((f"two_forward, {paper}", best(verdicts).estimator)):
        _scatter(figure.add_subplot(grid[place, 0]), results, name, by_name[name])
    shown = sorted((v for v in verdicts if v.group != "oracle"), key=lambda v: v.alone.value)
    left = figure.add_subplot(grid[:, 1])
    _bars(left, "one step on the candidate alone", shown, [v.alone for v in shown])
    right = figure.add_subplot(grid[:, 2], sharey=left)
    _bars(right, f"{len(results.subsets)} half subsets (LDS)", shown, [v.lds for v in shown if v.lds])
    right.tick_params(labelleft=False)
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


def _bars(axes: Axes, title: str, verdicts: Sequence[Verdict], found: Sequence[Rho]) -> None:
    values, places = np.array([each.value for each in found]), np.arange(len(verdicts))
    spread = np.abs(np.array([[each.low, each.high] for each in found]).T - values)
    axes.barh(places, values, xerr=spread, color=[COLOURS[v.group] for v in verdicts], error_kw={"linewidth": 0.8})
    axes.set_yticks(places, [v.estimator for v in verdicts], fontsize=7)
    axes.set_title(title, fontsize=9)
    axes.set_xlabel("Spearman's rho, 95 % bootstrap interval")
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
