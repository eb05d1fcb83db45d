"""Figures of pretraining: the loss until the plateau, the plateau's window, the arms after it.

Knows what to draw and in which colour; the look and the embedding are `svg`'s.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from synpro_engine.report import svg
from synpro_engine.report.model import ReportData
from synpro_engine.report.panels import FigurePanel, legend_above, loss_axes, point_marks
from synpro_engine.report.training_records import Curve, PlateauInfo

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Colour and dash go together, so that lines are told apart in black and white too.
_ARM_LOOKS = ((svg.ORANGE, "-"), (svg.BLUE, (0, (4, 1.6))), (svg.GREEN, (0, (1, 1.2))), (svg.PURPLE, "-."))
_TAIL = 0.5  # how much of pretraining an arm's panel shows, as a share of the arm's own length


def pretraining_panels(data: ReportData) -> list[FigurePanel]:
    """Loss before the plateau, and the window of evaluations that the plateau was decided on."""
    panels = [_pretrain_loss(data)] if data.pretrain else []
    if data.plateau and data.plateau.window_losses:
        panels.append(_plateau_window(data.plateau))
    return panels


def arm_panels(data: ReportData) -> list[FigurePanel]:
    """Loss of the arms after the plateau, one panel for each kind of text it was measured on."""
    return [_arm_loss(data, kind) for kind in dict.fromkeys(curve.kind for curve in data.arms)]


def _pretrain_loss(data: ReportData) -> FigurePanel:
    with svg.panel("pretrain-loss", "Pretraining loss on training and reference text") as drawn:
        for curve in data.pretrain:
            if curve.kind == "train":
                drawn.axes.plot(curve.x, curve.loss, color=svg.GREY, lw=1.0, label=curve.name)
            else:
                drawn.axes.plot(curve.x, curve.loss, color=svg.BLUE, label=curve.name, **point_marks(curve.x))
        loss_axes(drawn.axes, data.curve_unit)
        _mark_plateau(drawn.axes, data.plateau)
        legend_above(drawn.axes, columns=2)
    return FigurePanel(
        title="Loss before the plateau",
        svg=drawn.svg,
        caption="Cross-entropy on the text being trained on and on text kept out of training; the dashed line marks "
        "where training on organic text alone was ended.",
    )


def _plateau_window(plateau: PlateauInfo) -> FigurePanel:
    losses = plateau.window_losses
    steps = plateau.window_steps or tuple(range(1 - len(losses), 1))
    with svg.panel("plateau-window", "Reference loss at the evaluations that decided the plateau") as drawn:
        axes = drawn.axes
        axes.plot(steps, losses, color=svg.BLUE, label="reference loss", **point_marks(steps))
        axes.axhline(min(losses), color=svg.INK, lw=0.9, ls=(0, (1, 2)), label=f"lowest, {min(losses):.4f}")
        loss_axes(axes, "step")
        axes.set_xticks(steps if len(steps) <= 8 else steps[:: -(-len(steps) // 8)])
        legend_above(axes, columns=2)
    return FigurePanel(
        title="What the plateau decision looked at",
        svg=drawn.svg,
        caption="The latest reference losses, enlarged; training stops when they no longer improve by the required "
        "share.",
    )


def _arm_loss(data: ReportData, kind: str) -> FigurePanel:
    curves = [curve for curve in data.arms if curve.kind == kind]
    names = list(dict.fromkeys(curve.name for curve in data.arms))
    with svg.panel(f"arms-{kind}", f"Loss of each arm on {kind} text", height=300) as drawn:
        for before in (curve for curve in data.pretrain if curve.kind == kind):
            x, loss = _tail(before, curves)
            drawn.axes.plot(x, loss, color=svg.GREY, lw=1.2, **point_marks(before.x))
        for curve in curves:
            colour, dash = _ARM_LOOKS[names.index(curve.name) % len(_ARM_LOOKS)]
            width = 1.0 if kind == "train" else 1.7
            drawn.axes.plot(
                curve.x, curve.loss, color=colour, ls=dash, lw=width, label=curve.name, **point_marks(curve.x)
            )
        loss_axes(drawn.axes, data.curve_unit)
        _mark_plateau(drawn.axes, data.plateau)
        legend_above(drawn.axes, columns=2)
    what = (
        "its own training text, which is another for each arm: these lines must not be compared"
        if kind == "train"
        else f"the same {kind} text"
    )
    return FigurePanel(
        title=f"{'Training' if kind == 'train' else kind.capitalize()} loss of the arms",
        svg=drawn.svg,
        caption=f"Cross-entropy of each arm on {what}; grey is the common past before the plateau.",
    )


def _tail(before: Curve, arms: Sequence[Curve]) -> tuple[list[float], list[float]]:
    """The end of a pretraining curve, short enough that the arms fill the panel."""
    ends = [x for curve in arms for x in (*curve.x[:1], *curve.x[-1:])]
    start = min(ends) - _TAIL * (max(ends) - min(ends)) if ends else float("-inf")
    kept = [(x, loss) for x, loss in zip(before.x, before.loss, strict=True) if x >= start]
    return [x for x, _ in kept], [loss for _, loss in kept]


def _mark_plateau(axes: "Axes", plateau: PlateauInfo | None) -> None:
    if plateau is None:
        return
    axes.axvline(plateau.x, color=svg.INK, lw=0.9, ls=(0, (3, 2)))
    left, right = axes.get_xlim()
    label_left = plateau.x > (left + right) / 2
    axes.annotate(
        "plateau" if plateau.stopped else "budget",
        (plateau.x, 1),
        (-4 if label_left else 4, -3),
        xycoords=("data", "axes fraction"),
        textcoords="offset points",
        ha="right" if label_left else "left",
        va="top",
        fontsize=8,
    )
