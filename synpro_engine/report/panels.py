"""What the figures of the report have in common: the record of a panel, axes with units, legends, line looks.

A panel is about 420 pixels wide, so it can stand beside another on a wide page and alone on a narrow one without its
letters shrinking. Its title is the page's; its legend stands above the axes, where no line can run through it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from synpro_engine.report import svg
from synpro_engine.report.numbers import compact

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_FEW_POINTS = 40


@dataclass(frozen=True, kw_only=True)
class FigurePanel:
    """A title, an SVG element, and one sentence that tells a stranger how to read it (may be empty)."""

    title: str
    svg: str
    caption: str = ""


def loss_axes(axes: "Axes", unit: str) -> None:
    """Label axes that show a loss over training; `unit` is `step` or `tokens`."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    axes.set_xlabel("training tokens" if unit == "tokens" else "training step")
    axes.set_ylabel("loss (nats per token)")
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, steps=[1, 2, 5, 10]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _position: compact(x)))


def legend_above(axes: "Axes", columns: int) -> None:
    """Put the legend between the panel's title and its axes."""
    axes.legend(
        loc="lower left", bbox_to_anchor=(0, 1), ncols=columns, borderpad=0, borderaxespad=0.5, columnspacing=1.4
    )


def point_marks(x: Sequence[float]) -> dict[str, Any]:
    """Mark the points of a short curve, whose line is only a guide; nothing for a long one."""
    return {} if len(x) > _FEW_POINTS else {"marker": "o", "ms": 3.6, "mec": svg.PAPER, "mew": 0.6}


def slug(text: str) -> str:
    """`text` as a part of an id."""
    return "".join(letter if letter.isascii() and letter.isalnum() else "-" for letter in text)
