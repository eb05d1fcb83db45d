"""How lines of several arms or runs are told apart: colour and dash together, so also in black and white."""

from collections.abc import Sequence

from synpro_engine.report import svg

Dash = str | tuple[float, tuple[float, ...]]

_LOOKS: tuple[tuple[str, Dash], ...] = (
    *((svg.ORANGE, "-"), (svg.BLUE, (0, (4, 1.6))), (svg.GREEN, (0, (1, 1.2))), (svg.PURPLE, "-.")),
    *zip(svg.SERIES[4:], ("-", (0, (4, 1.6)), (0, (1, 1.2)), "-."), strict=True),
)


def look_of(name: str, names: Sequence[str]) -> tuple[str, Dash]:
    """Colour and dash of one of `names`: the same wherever these are drawn in this order."""
    return _LOOKS[names.index(name) % len(_LOOKS)]
