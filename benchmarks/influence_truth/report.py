"""The tables of the influence benchmark from its records alone, and the documentation that shows them.

Knows standings and how they look as text; measures nothing. The figures are in another file.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.common.documents import renew
from benchmarks.common.rank_correlation import Rho
from benchmarks.common.tables import markdown
from benchmarks.influence_truth.figures import COLOURS, draw_sweep, draw_truth, paper
from benchmarks.influence_truth.gradients import DEFAULT
from benchmarks.influence_truth.results import Results
from benchmarks.influence_truth.standings import Standing, differences, standings

HEADINGS = (
    "estimator",
    "alone",
    "held out",
    "natural",
    "among mates",
    "LDS",
    "LDS within kinds",
    "LDS held out",
    "cost",
    "made in",
)
CHOSEN = f"dot, {DEFAULT}, clipped"
"""What the others are compared with, pair by pair."""


def table(ranked: Sequence[Standing]) -> str:
    """Markdown. Best first within each group."""
    order = {group: place for place, group in enumerate(COLOURS)}
    ordered = sorted(ranked, key=lambda v: (order[v.group], -v.alone.value))
    return markdown(HEADINGS, map(_cells, ordered))


def _cells(v: Standing) -> tuple[str, ...]:
    return (
        v.estimator,
        _interval(v.alone),
        f"{v.held_out:.3f}",
        f"{v.natural:.3f}",
        _interval(v.among_mates),
        "" if v.lds is None else _interval(v.lds),
        "" if v.lds_within is None else _interval(v.lds_within),
        "" if v.lds_held_out is None else f"{v.lds_held_out:.2f}",
        f"{v.cost:.1f}x" if v.cost else "",
        f"{v.made_in:.1f} s" if v.made_in else "",
    )


def _interval(found: Rho, sign: str = "") -> str:
    return f"{found.value:{sign}.3f} ({found.low:{sign}.2f} to {found.high:{sign}.2f})"


def main_options(results: Results) -> list[str]:
    """What the chosen estimator is compared with."""
    probes = [paper(results, results.settings.probe_steps[n]) for n in (-1, 0)]
    dots = [f"dot, {DEFAULT}", "dot, Adam with the next v, reference gradient one step ahead, clipped"]
    plain = ["dot, reference gradient, clipped", "dot, reference gradient", "dot, Adam"]
    options = [*probes, *dots, *plain, "exact step, reference gradient one step ahead"]
    made = {row["estimator"] for row in results.scores}  # a run with Muon has none of AdamW's own
    return [option for option in options if option in made]


def contest(results: Results) -> str:
    """Markdown: by how much the chosen estimator's rhos exceed those of others, with intervals of the differences."""
    others = main_options(results)
    found = {other: differences(results, CHOSEN, other) for other in others}
    keys = list(found[others[0]])
    return markdown(
        ["against", *keys], ([other, *(_interval(found[other][key], "+") for key in keys)] for other in others)
    )


def beside(runs: Sequence[Results]) -> str:
    """Markdown: the main options in several runs, under each other."""
    options = [CHOSEN, *main_options(runs[0]), "exact step among mates, reference gradient one step ahead"]
    found = [{standing.estimator: standing for standing in standings(run)} for run in runs]
    headings = ("estimator", "run", "alone", "among mates", "LDS", "LDS within kinds")
    rows = []
    for name in [*options, "the measured mean of its kind"]:
        for run, ranked in ((run, ranked) for run, ranked in zip(runs, found, strict=True) if name in ranked):
            v, settings = ranked[name], run.settings
            cells = ("" if rho is None else _interval(rho) for rho in (v.alone, v.among_mates, v.lds, v.lds_within))
            by = ", Muon" if settings.optimizer_name == "muon" else ""
            rows.append([name, f"seed {settings.seed}, {settings.mates} mates{by}", *cells])
    return markdown(headings, rows)


def oracles(results: Results) -> str:
    """One line: how far the capture is from forward mode on the same direction, and finite differences from it."""
    rows = {row["estimator"]: row for row in results.scores}
    of = next(name.removeprefix("jvp, ") for name in rows if name.startswith("jvp, "))
    true, every = np.array(rows[f"jvp, {of}"]["values"]), rows[f"jvp, {of}"]["every"]
    dot = f"dot, {of}"
    found = {name: rows[name]["values"] for name in (dot, f"finite_difference, {of}")}
    found[dot] = found[dot][::every]
    parts = []
    for name, values in found.items():
        wrong = np.abs(np.array(values) - true)
        whole, middle = (float(x) for x in (np.linalg.norm(wrong) / np.linalg.norm(true), np.median(wrong / abs(true))))
        parts.append(f"`{name.split(',')[0]}` {_small(whole)} over all, {_small(middle)} in the median")
    about = f"Relative error of {len(true)} scores along `{dot}`'s direction, against `jvp` in fp64"
    return f"{about}: {'; '.join(parts)}."


def _small(error: float) -> str:
    # The records keep seven digits of a score.
    return f"{error:.1e}" if error >= 1e-6 else "below 1e-6"


def sweep_table(results: Results) -> str:
    """Markdown: relative errors of the estimators at each size of the displacement."""
    names = list(results.sweep[0]["errors"])
    rows = []
    for row in results.sweep:
        errors = (f"{row['errors'][name]:.1e} ({row['spearman'][name]:.3f})" for name in names)
        share = "1" if row["scale"] == 1 else f"1/{round(1 / row['scale'])}"
        rows.append([share, f"{row['relative_size']:.1e}", f"{row['mean_influence']:.1e}", *errors])
    return markdown(["scale", "size of v over theta", "mean absolute influence", *names], rows)


def conditions(results: Results) -> str:
    """One line: where and on what it was measured."""
    environment, theta = results.environment, results.theta
    kinds, counts = np.unique(results.kinds(), return_counts=True)
    of_kinds = ", ".join(
        f"{count} {kind}" for kind, count in sorted(zip(kinds, counts, strict=True), key=lambda x: -x[1])
    )
    return (
        f"Measured on {environment['device']}, {environment['threads']} threads, torch {environment['torch']}, commit "
        f"{str(environment['commit'])[:12]}; seed {results.settings.seed}; loss of the reference at theta "
        f"{theta['reference']:.3f} nats per token, of the held-out reference {theta['held_out']:.3f}; "
        f"{len(results.candidates)} candidates ({of_kinds}), {len(results.subsets)} subsets."
    )


# ---- into the documentation ------------------------------------------------------------------------------------------


def write_docs(folder: Path, results: Results, ranked: Sequence[Standing], again: Sequence[Results]) -> None:
    """Draw the figures into `folder`/images and renew the marked blocks of `folder`/influence.md, where it is.

    again: other runs to set beside this one; without any that block stays as it is.
    """
    images, page = folder / "images", folder / "influence.md"
    images.mkdir(parents=True, exist_ok=True)
    draw_truth(images / "influence_truth.png", results, ranked)
    draw_sweep(images / "influence_agreement.png", results)
    blocks = {
        "conditions": conditions(results),
        "truth": table(ranked),
        "differences": contest(results),
        "oracles": oracles(results),
        "agreement": sweep_table(results),
    }
    if again:
        blocks["again"] = beside([results, *again])
    if page.exists():
        renew(page, blocks)
