"""Pretraining: its losses until the plateau, and the evaluations that the plateau was decided on.

Losses are cross-entropy in nats per token.
"""

from dataclasses import dataclass
from itertools import cycle
from typing import TYPE_CHECKING, Literal

from synpro_engine.report import svg
from synpro_engine.report.numbers import compact
from synpro_engine.report.svg import Panel

if TYPE_CHECKING:
    from matplotlib.axes import Axes

CurveKind = Literal["train", "reference", "validation"]


@dataclass(frozen=True, kw_only=True)
class Curve:
    """A loss over training. `steps` count from the start of the run: an arm begins where pretraining ended.

    Of several `seeds` the loss is their mean, and low and high are the ends of a band around it; else these are empty.
    """

    name: str
    kind: CurveKind
    steps: tuple[int, ...]
    loss: tuple[float, ...]
    seeds: int = 1
    low: tuple[float, ...] = ()
    high: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        assert len(self.steps) == len(self.loss), f"{self.name}: {len(self.steps)} steps for {len(self.loss)} losses"
        banded = len(self.steps) if self.seeds > 1 else 0
        assert len(self.low) == len(self.high) == banded, f"{self.name}: a band is of several seeds, at every step"


@dataclass(frozen=True, kw_only=True)
class Plateau:
    """Where pretraining ended and why. `window_*` are the evaluations that the decision looked at, oldest first."""

    step: int
    stopped: bool  # False: the budget ended before the loss flattened
    reason: str
    window_steps: tuple[int, ...] = ()
    window_losses: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        assert len(self.window_steps) == len(self.window_losses), "plateau: a loss for every evaluation of the window"

    def mark(self, axes: "Axes") -> None:
        """Draw a line where pretraining ended; its label stands on the side with more room."""
        axes.axvline(self.step, color=svg.INK, lw=0.9, ls=(0, (3, 2)))
        left, right = axes.get_xlim()
        label_left = self.step > (left + right) / 2
        axes.annotate(
            "plateau" if self.stopped else "budget",
            (self.step, 1),
            (-4 if label_left else 4, -3),
            xycoords=("data", "axes fraction"),
            textcoords="offset points",
            ha="right" if label_left else "left",
            va="top",
            fontsize=8,
        )


@dataclass(frozen=True, kw_only=True)
class Pretraining:
    """What is known so far of the training on organic text alone."""

    curves: tuple[Curve, ...] = ()
    plateau: Plateau | None = None

    def panels(self) -> list[Panel]:
        """Loss before the plateau, and the window of evaluations that the plateau was decided on."""
        panels = [self._loss()] if self.curves else []
        if self.plateau and len(self.plateau.window_losses) > 1:  # of one evaluation there is nothing to see
            panels.append(_window(self.plateau))
        return panels

    def _loss(self) -> Panel:
        with svg.panel(
            "pretrain-loss",
            "Pretraining loss on training and reference text",
            title="Loss before the plateau",
            caption="Cross-entropy on the text being trained on and on text kept out of training; the dashed line "
            "marks where training on organic text alone was ended.",
        ) as panel:
            colours = cycle((svg.BLUE, *(colour for colour in svg.SERIES if colour != svg.BLUE)))
            for curve in self.curves:
                if curve.kind == "train":
                    panel.axes.plot(curve.steps, curve.loss, color=svg.GREY, lw=1.0, label=curve.name)
                else:
                    marks = svg.point_marks(curve.steps)
                    style = "-" if curve.name == curve.kind else "--"  # one of several references, by itself
                    panel.axes.plot(curve.steps, curve.loss, style, color=next(colours), label=curve.name, **marks)
            label_loss_axes(panel.axes)
            if self.plateau is not None:
                self.plateau.mark(panel.axes)
            svg.legend_above(panel.axes, columns=2)
        return panel


def _window(plateau: Plateau) -> Panel:
    steps, losses = plateau.window_steps, plateau.window_losses
    with svg.panel(
        "plateau-window",
        "Reference loss at the evaluations that decided the plateau",
        title="What the plateau decision looked at",
        caption="The latest reference losses, enlarged; training stops when they no longer improve by the required "
        "share.",
    ) as panel:
        axes = panel.axes
        axes.plot(steps, losses, color=svg.BLUE, label="reference loss", **svg.point_marks(steps))
        axes.axhline(min(losses), color=svg.INK, lw=0.9, ls=(0, (1, 2)), label=f"lowest, {min(losses):.4f}")
        label_loss_axes(axes)
        axes.set_xticks(steps if len(steps) <= 8 else steps[:: -(-len(steps) // 8)])
        svg.legend_above(axes, columns=2)
    return panel


def label_loss_axes(axes: "Axes") -> None:
    """Label axes that show a loss over training steps."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    axes.set_xlabel("training step")
    axes.set_ylabel("loss (nats per token)")
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, steps=[1, 2, 5, 10]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _position: compact(x)))
