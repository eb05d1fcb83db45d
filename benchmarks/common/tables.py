"""Tables as text, in Markdown and in aligned columns."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def markdown_row(cells: Iterable[str]) -> str:
    """One line of a Markdown table."""
    return f"| {' | '.join(cells)} |"


def markdown(headings: Sequence[str], rows: Iterable[Iterable[str]]) -> str:
    """A Markdown table."""
    return "\n".join([markdown_row(headings), f"|{'---|' * len(headings)}", *map(markdown_row, rows)])


def aligned(lines: Sequence[Sequence[str]], *, right: range = range(0)) -> list[str]:
    """Lines of cells in columns as wide as their widest cell; those of `right` stand at their right."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return [
        "  ".join(
            cell.rjust(width) if place in right else cell.ljust(width)
            for place, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    ]
