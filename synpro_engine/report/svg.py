"""Panels: drawings in one common look, as SVG elements that belong in the page.

A panel is about 420 pixels wide, so it can stand beside another on a wide page and alone on a narrow one without its
letters shrinking. Its title is the page's; its legend stands above the axes, where no line can run through it.

matplotlib's SVG is made safe to embed: theme colours become CSS variables (so one drawing serves light, dark and
print), text stays text (in the page's font, selectable), ids are unique in the page, and metadata that names outside
addresses goes.
"""

import io
import re
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # matplotlib is slow to import: only a process that draws pays for it
    from matplotlib.axes import Axes

# Okabe and Ito's colours, told apart with any colour vision, and four that are as far from these. Each is a CSS
# variable of page.css, and the hex value is only its name inside matplotlib. No two may be equal.
INK, MUTED, GRID, PAPER = "#1b1f23", "#5c646c", "#dfe2e5", "#fefefe"
BLUE, ORANGE, GREEN, PURPLE, GREY = "#0072b2", "#d55e00", "#009e73", "#aa4499", "#8a939b"
INDIGO, BROWN, ROSE, OLIVE = "#2a2ab8", "#732917", "#e62e53", "#7d8a00"
SERIES = (ORANGE, GREEN, PURPLE, BLUE, OLIVE, INDIGO, ROSE, BROWN)
"""For things that are compared, in the order in which they are taken."""
CSS_VARIABLES = {
    INK: "--ink",
    MUTED: "--muted",
    GRID: "--grid",
    PAPER: "--paper",
    BLUE: "--blue",
    ORANGE: "--orange",
    GREEN: "--green",
    PURPLE: "--purple",
    GREY: "--grey",
    INDIGO: "--indigo",
    BROWN: "--brown",
    ROSE: "--rose",
    OLIVE: "--olive",
}
_BAND_POINTS = 400
_POINTS_PER_PIXEL = 0.75  # matplotlib writes SVG at 72 points to the inch; CSS has 96 pixels
_RC: dict[Any, Any] = {  # matplotlib types its keys by a literal of its own
    "svg.fonttype": "none",
    "svg.hashsalt": "synpro",  # the same data gives the same bytes
    "text.parse_math": False,  # labels may hold a stray dollar sign
    "font.family": "DejaVu Sans",  # comes with matplotlib; wider than what the page uses, so nothing overflows
    "font.size": 8.5,
    "text.color": INK,
    "axes.edgecolor": GREY,
    "axes.labelcolor": MUTED,
    "axes.labelsize": 8.5,
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "xtick.major.size": 3,
    "ytick.major.size": 0,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "legend.handlelength": 1.6,
    "lines.linewidth": 1.6,
}
_SVG = "{http://www.w3.org/2000/svg}"
_HREF = "{http://www.w3.org/1999/xlink}href"
_FEW_POINTS = 40


@dataclass
class Panel:
    """One pair of axes while it is drawn on, and its SVG element afterwards."""

    title: str
    caption: str  # one sentence that tells a stranger how to read the panel; may be empty
    axes: "Axes"
    svg: str = ""


@contextmanager
def panel(
    name: str, description: str, *, title: str, caption: str = "", width: int = 420, height: int = 270
) -> Iterator[Panel]:
    """Draw one panel: on leaving the block, `.svg` holds it.

    Args:
        name: unique in the page; prefixes every id of the SVG.
        description: what the panel shows, for readers who do not see it; becomes the SVG's title.
        title: what the page says above the drawing.
        caption: what it says below.
        width: in CSS pixels.
        height: in CSS pixels.
    """
    with drawing(width, height, transparent=True) as drawn:
        made = Panel(title=title, caption=caption, axes=drawn.axes)
        yield made
    made.svg = inline_svg(drawn.document, name, description)


@dataclass
class Drawing:
    """One pair of axes while it is drawn on, and an SVG document afterwards."""

    axes: "Axes"
    document: str = ""


@contextmanager
def drawing(width: int, height: int, *, transparent: bool = False) -> Iterator[Drawing]:
    """Draw in the common look: on leaving the block, `.document` holds a file of its own. Sizes in CSS pixels."""
    import matplotlib as mpl
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    with mpl.rc_context(_RC):
        inches = (width * _POINTS_PER_PIXEL / 72, height * _POINTS_PER_PIXEL / 72)
        figure = Figure(figsize=inches, dpi=72)
        drawn = Drawing(axes=figure.add_subplot())
        yield drawn
        # By hand: a figure with a layout of its own is drawn once more before it is saved, for nothing but that.
        ConstrainedLayoutEngine().execute(figure)
        buffer = io.StringIO()
        no_metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(buffer, format="svg", transparent=transparent, metadata=no_metadata)
    drawn.document = buffer.getvalue()


def legend_above(axes: "Axes", columns: int) -> None:
    """Put the legend between the panel's title and its axes."""
    axes.legend(
        loc="lower left", bbox_to_anchor=(0, 1), ncols=columns, borderpad=0, borderaxespad=0.5, columnspacing=1.4
    )


def band(axes: "Axes", x: Sequence[float], low: Sequence[float], high: Sequence[float], colour: str) -> None:
    """Fill between two curves, at no more than `_BAND_POINTS`: a filled shape is not thinned out as a line is."""
    at = sorted({round(share * (len(x) - 1) / (_BAND_POINTS - 1)) for share in range(_BAND_POINTS)} if x else ())
    axes.fill_between([x[n] for n in at], [low[n] for n in at], [high[n] for n in at], color=colour, alpha=0.18, lw=0)


def point_marks(x: Sequence[float]) -> dict[str, Any]:
    """Mark the points of a short curve, whose line is only a guide; nothing for a long one."""
    return {} if len(x) > _FEW_POINTS else {"marker": "o", "ms": 3.6, "mec": PAPER, "mew": 0.6}


def slug(text: str) -> str:
    """`text` as a part of an id."""
    return "".join(letter if letter.isascii() and letter.isalnum() else "-" for letter in text)


def inline_svg(document: str, name: str, description: str) -> str:
    """Turn a standalone SVG document into an element for the inside of an HTML page."""
    root = ET.fromstring(document)
    width, height = (float(root.attrib[side].removesuffix("pt")) / _POINTS_PER_PIXEL for side in ("width", "height"))
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag == f"{_SVG}metadata" or child.tag == f"{_SVG}style":  # a <style> would reach the whole page
                parent.remove(child)
    for element in root.iter():
        _localise(element, name)
    root.attrib |= {
        "width": f"{width:.0f}",
        "height": f"{height:.0f}",
        "role": "img",
        "aria-labelledby": f"{name}-title",
    }
    title = ET.Element("title", {"id": f"{name}-title"})
    title.text = description
    root.insert(0, title)
    return ET.tostring(root, encoding="unicode")


def _localise(element: ET.Element, name: str) -> None:
    """Make one element independent of its document: no namespace, own ids, the page's colours."""
    element.tag = element.tag.removeprefix(_SVG)
    if _HREF in element.attrib:
        element.attrib["href"] = element.attrib.pop(_HREF)
    for key, value in element.attrib.items():
        if key == "id":
            value = f"{name}-{value}"
        value = re.sub(r"^#", f"#{name}-", value) if key == "href" else value.replace("url(#", f"url(#{name}-")
        element.attrib[key] = _COLOUR.sub(lambda match: f"var({CSS_VARIABLES[match[0]]})", value)


_COLOUR = re.compile("|".join(CSS_VARIABLES))
