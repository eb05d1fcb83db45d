"""How lines of several arms or runs are told apart: colour and dash together, so also in black and white."""

import re
from collections.abc import Sequence

from synpro_engine.report import svg

# Control characters but tab and line ends; lone surrogates; marks that turn the direction of reading.
_HIDDEN = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\u202a-\u202e\u2066-\u2069]")

Dash = str | tuple[float, tuple[float, ...]]

_LOOKS: tuple[tuple[str, Dash], ...] = (
    *((svg.ORANGE, "-"), (svg.BLUE, (0, (4, 1.6))), (svg.GREEN, (0, (1, 1.2))), (svg.PURPLE, "-.")),
    *zip(svg.SERIES[4:], ("-", (0, (4, 1.6)), (0, (1, 1.2)), "-."), strict=True),
)


def look_of(name: str, names: Sequence[str]) -> tuple[str, Dash]:
    """Colour and dash of one of `names`: the same wherever these are drawn in this order."""
    return _LOOKS[names.index(name) % len(_LOOKS)]


def visible(text: str) -> str:
    """With U+FFFD for what could hide text, and for lone surrogates, which would break UTF-8 and XML."""
    return _HIDDEN.sub("\ufffd", text)


def legend_label(name: str) -> str:
    """`name` as matplotlib shows it: one that begins with `_` would be left out of the legend."""
    return f"\N{ZERO WIDTH SPACE}{visible(name)}" if name.startswith("_") else visible(name)
