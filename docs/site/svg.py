"""A layered graph as SVG, to stand inside a page: its colours are the page's (`docs/stylesheets/site.css`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

from docs.site.graph import Edges, Layout, layout

_HEIGHT, _GAP, _BETWEEN, _MARGIN = 46.0, 22.0, 44.0, 6.0
_STEP = 10.0  # how wide a place an arrow takes where it passes a layer
_LETTER, _SMALL = 8.0, 6.3  # upper bounds of a letter's width, in both sizes of text


@dataclass(frozen=True, kw_only=True)
class Box:
    """What is drawn of a node."""

    title: str
    note: str = ""
    kind: str = ""
    """Boxes of one kind have one colour."""
    href: str = ""

    @property
    def width(self) -> float:
        """Room for both lines."""
        return max(len(self.title) * _LETTER, len(self.note) * _SMALL) + 22


def draw(boxes: Mapping[str, Box], edges: Edges, *, title: str) -> str:
    """The graph as an `<svg>` element, arrows pointing down. `title` is for those who cannot see it."""
    placed = layout(edges, {name: box.width for name, box in boxes.items()}, _GAP, _STEP)
    reach = {name: boxes[name].width / 2 if name in boxes else _STEP / 2 for name in placed.center}
    left = min(placed.center[name] - half for name, half in reach.items()) - _MARGIN
    right = max(placed.center[name] + half for name, half in reach.items()) + _MARGIN
    height = len(placed.layers) * (_HEIGHT + _BETWEEN) - _BETWEEN + 2 * _MARGIN
    top = {name: _MARGIN + at * (_HEIGHT + _BETWEEN) for at, layer in enumerate(placed.layers) for name in layer}
    size = f'viewBox="0 0 {right - left:.0f} {height:.0f}" width="{right - left:.0f}"'
    kinds = sorted({box.kind for box in boxes.values()})
    return "\n".join(
        [
            f'<svg class="graph" xmlns="http://www.w3.org/2000/svg" {size} role="img" aria-label="{escape(title)}">',
            '<defs><marker id="arrow" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" '
            'orient="auto"><path d="M0,0.5 L8,4 L0,7.5 z"/></marker></defs>',
            *(_arrow(chain, placed, top, left) for chain in placed.chains),
            *(
                _box(box, placed.center[name] - left, top[name], kinds.index(box.kind))
                for name, box in sorted(boxes.items())
            ),
            "</svg>",
        ]
    )


def _arrow(chain: Sequence[str], placed: Layout, top: Mapping[str, float], left: float) -> str:
    """A smooth line from the foot of the first box to the head of the last, straight down where it passes a layer."""
    x, y = placed.center[chain[0]] - left, top[chain[0]] + _HEIGHT
    path = [f"M{x:.1f},{y:.1f}"]
    for name in chain[1:]:
        to_x, to_y = placed.center[name] - left, top[name]
        half = (to_y - y) / 2
        path.append(f"C{x:.1f},{y + half:.1f} {to_x:.1f},{to_y - half:.1f} {to_x:.1f},{to_y:.1f}")
        x, y = to_x, to_y
        if name != chain[-1]:
            y += _HEIGHT
            path.append(f"L{x:.1f},{y:.1f}")
    return f'<path class="arrow" d="{" ".join(path)}" marker-end="url(#arrow)"/>'


def _box(box: Box, x: float, y: float, kind: int) -> str:
    middle = y + _HEIGHT / 2
    lines = [f'<text class="title" x="{x:.1f}" y="{middle + (-3 if box.note else 5):.1f}">{escape(box.title)}</text>']
    if box.note:
        lines.append(f'<text class="note" x="{x:.1f}" y="{middle + 14:.1f}">{escape(box.note)}</text>')
    corner = f'x="{x - box.width / 2:.1f}" y="{y:.1f}" width="{box.width:.1f}" height="{_HEIGHT:.0f}" rx="7"'
    group = f'<g class="box kind-{kind}"><rect {corner}/>{"".join(lines)}</g>'
    return f'<a href="{escape(box.href)}">{group}</a>' if box.href else group
