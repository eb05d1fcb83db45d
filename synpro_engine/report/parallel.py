"""Parallel coordinates: an axis for each setting and one for what came of it, a line for each trial.

A drawing that stands by itself, as a file; in the page's colours, but not in the page.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from synpro_engine.report import svg
from synpro_engine.report.numbers import compact

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MOST_NAMED = 12  # choices on an axis
_AXIS_PIXELS = 170


@dataclass(frozen=True, kw_only=True)
class Coordinate:
    """One axis: what it is called, and where each line crosses it.

    values: of each line; None where it has none. Texts stand in the order of `choices`, numbers on a scale.
    """

    name: str
    values: tuple[str | float | None, ...]
    choices: tuple[str, ...] = ()
    log: bool = False

    def heights(self) -> list[float | None]:
        """Of the lines, 0 at the foot of the axis and 1 at its top."""
        low, high = self.ends
        return [None if value is None else (self._place(value) - low) / (high - low) for value in self.values]

    @property
    def ends(self) -> tuple[float, float]:
        """The least and the largest place on the axis; where all are one, it is in the middle."""
        places = [self._place(value) for value in self.values if value is not None]
        places = [*places, 0.0, len(self.choices) - 1.0] if self.choices else places
        low, high = min(places, default=0.0), max(places, default=1.0)
        return (low, high) if low < high else (low - 1.0, high + 1.0)

    def _place(self, value: str | float) -> float:
        if isinstance(value, str):
            return float(self.choices.index(value))
        return math.log10(value) if self.log else float(value)

    def ticks(self) -> list[tuple[float, str]]:
        """Heights and names of what is written beside the axis."""
        low, high = self.ends
        if self.choices:
            few = self.choices if len(self.choices) <= _MOST_NAMED else (self.choices[0], self.choices[-1])
            return [((self._place(name) - low) / (high - low), name) for name in few]
        marks = [(share, low + share * (high - low)) for share in (0.0, 0.25, 0.5, 0.75, 1.0)]
        return [(share, compact(10**place if self.log else place)) for share, place in marks]


def parallel_coordinates(coordinates: Sequence[Coordinate], best: int | None, ended: Sequence[bool]) -> str:
    """An SVG document. best: the number of the line that stands out. ended: which lines are of trials that ended early.

    The last coordinate is what came of it: the lower, the darker a line that went to its end.
    """
    last = coordinates[-1].heights()
    with svg.drawing(_AXIS_PIXELS * (len(coordinates) + 1), 330) as drawn:
        axes, heights = drawn.axes, [one.heights() for one in coordinates]
        for number, early in enumerate(ended):
            line = [(x, here[number]) for x, here in enumerate(heights) if here[number] is not None]
            if number != best:
                _line(axes, line, early=early, share=last[number])
        if best is not None:
            _line(axes, [(x, here[best]) for x, here in enumerate(heights)], early=False, share=None)
        _frame(axes, coordinates)
        _legend(axes)
    return drawn.document


def _line(axes: Axes, points: Sequence[tuple[int, float | None]], *, early: bool, share: float | None) -> None:
    """share: of the range of losses, 0 for the lowest; None for the best line of all."""
    look = {"color": svg.ORANGE, "lw": 2.4, "zorder": 4}
    if early:
        look = {"color": svg.GREY, "lw": 0.8, "ls": (0, (4, 2)), "alpha": 0.7, "zorder": 2}
    elif share is not None:
        look = {"color": svg.BLUE, "lw": 1.2, "alpha": 1.0 - 0.75 * share, "zorder": 3}
    axes.plot([x for x, _ in points], [y for _, y in points], **look)  # pyright: ignore[reportArgumentType]


def _frame(axes: Axes, coordinates: Sequence[Coordinate]) -> None:
    axes.set_xlim(-0.4, len(coordinates) - 0.45)
    axes.set_ylim(-0.05, 1.05)
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    axes.set_yticks([])
    axes.set_xticks(range(len(coordinates)), [one.name for one in coordinates])
    axes.tick_params(axis="x", length=0)
    beside = {"textcoords": "offset points", "ha": "right", "va": "center", "fontsize": 7.5, "zorder": 5}
    paper = {"facecolor": "white", "edgecolor": "none", "alpha": 0.75, "pad": 0.5}  # lines run through the numbers
    for x, one in enumerate(coordinates):
        axes.axvline(x, color=svg.INK, lw=0.8, zorder=1)
        for height, name in one.ticks():
            axes.annotate(name, (x, height), (-4, 0), bbox=paper, **beside)


def _legend(axes: Axes) -> None:
    from matplotlib.lines import Line2D

    looks = {
        "the best": {"color": svg.ORANGE, "lw": 2.4},
        "complete, the darker the lower its loss": {"color": svg.BLUE, "lw": 1.2},
        "ended early": {"color": svg.GREY, "lw": 0.8, "ls": (0, (4, 2))},
    }
    handles = [Line2D([], [], label=name, **look) for name, look in looks.items()]
    axes.legend(handles=handles, loc="lower left", bbox_to_anchor=(0, 1.02), ncols=3, borderpad=0, borderaxespad=0.5)
