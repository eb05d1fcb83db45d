"""Figures of the generator: influence of what it read and wrote, and its rewards while it was tuned.

Knows what to draw and in which colour; the look and the embedding are `svg`'s.
"""

from collections.abc import Sequence

from synpro_engine.report import svg
from synpro_engine.report.generator_records import InfluenceValues, RewardCurves
from synpro_engine.report.model import ReportData
from synpro_engine.report.numbers import fixed
from synpro_engine.report.panels import FigurePanel, legend_above, point_marks, slug

_OPERATION_COLOURS = (svg.ORANGE, svg.GREEN, svg.PURPLE, svg.BLUE)
_BINS = 24


def influence_panels(data: ReportData) -> list[FigurePanel]:
    """Distribution of influence over source slices and over generated texts, one panel per operation."""
    return [_influence(values, _operation_colour(data, values.operation)) for values in data.influence]


def reward_panels(data: ReportData, curves: RewardCurves) -> list[FigurePanel]:
    """Total reward, KL and completion length of one operation over the tuning steps."""
    specs = (
        ("Total reward", "weighted sum", curves.total, "Mean over the completions of a step; higher is better."),
        ("KL to the untuned generator", "nats per token", curves.kl, "How far tuning has moved the generator."),
        ("Completion length", "tokens", curves.lengths, "Shows whether reward is won by length alone."),
    )
    return [
        FigurePanel(title=title, svg=_by_step(data, curves, title, values, unit=unit, size=(300, 200)), caption=caption)
        for title, unit, values, caption in specs
        if values
    ]


def part_panels(data: ReportData, curves: RewardCurves) -> list[FigurePanel]:
    """Each reward of one operation on its own scale, before weighting."""
    panels: list[FigurePanel] = []
    for part, values in curves.parts.items():
        weight = curves.weights.get(part)
        title = part.replace("_", " ") + ("" if weight is None else f" × {weight:g}")
        panels.append(FigurePanel(title=title, svg=_by_step(data, curves, part, values, unit="", size=(200, 115))))
    return panels


def _influence(values: InfluenceValues, colour: str) -> FigurePanel:
    import numpy as np

    everything = np.asarray((*values.sources, *values.generated), dtype=float)
    finite = everything[np.isfinite(everything)]
    edges = np.linspace(finite.min(), finite.max(), _BINS + 1) if len(finite) and np.ptp(finite) else _BINS // 2
    with svg.panel(f"influence-{slug(values.operation)}", f"Influence of {values.operation} texts") as drawn:
        axes = drawn.axes
        for texts, name, tint in ((values.sources, "source", svg.GREY), (values.generated, "generated", colour)):
            sample = np.asarray([value for value in texts if np.isfinite(value)])
            if len(sample):
                median = float(np.median(sample))
                share = np.full(len(sample), 100 / len(sample))
                label = f"{name}: {len(sample)} texts, median {fixed(median, 4)}"
                axes.hist(sample, edges, weights=share, color=tint, alpha=0.25)
                axes.hist(sample, edges, weights=share, color=tint, histtype="step", lw=1.3, label=label)
                axes.axvline(median, color=tint, lw=1.4, ls=(0, (4, 2)))
        axes.axvline(0, color=svg.INK, lw=0.8)
        axes.set_xlabel(f"influence (nats per {'nat of the reference' if values.per_nat else 'token'})")
        axes.set_ylabel("share of texts (%)")
        axes.grid(visible=False, axis="x")
        if len(finite):
            legend_above(axes, columns=1)
    dropped = len(everything) - len(finite)
    caption = (
        "Right of zero, what lowers the loss on the reference also lowers it on the text; dashed lines are medians."
        + (f" Texts left out because their value is not finite: {dropped}." if dropped else "")
    )
    return FigurePanel(title=values.operation, svg=drawn.svg, caption=caption)


def _by_step(
    data: ReportData, curves: RewardCurves, title: str, values: Sequence[float], *, unit: str, size: tuple[int, int]
) -> str:
    from matplotlib.ticker import MaxNLocator

    name = f"tuning-{slug(curves.operation)}-{slug(title)}"
    width, height = size
    with svg.panel(name, f"{curves.operation}: {title} by tuning step", width=width, height=height) as drawn:
        axes = drawn.axes
        axes.plot(curves.steps, values, color=_operation_colour(data, curves.operation), **point_marks(curves.steps))
        if unit:
            axes.set_xlabel("tuning step")
            axes.set_ylabel(unit)
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(4))
        axes.margins(y=0.15)
    return drawn.svg


def _operation_colour(data: ReportData, operation: str) -> str:
    """The same colour for an operation in every figure."""
    order = dict.fromkeys([v.operation for v in data.influence] + [c.operation for c in data.rewards])
    return _OPERATION_COLOURS[list(order).index(operation) % len(_OPERATION_COLOURS)]
