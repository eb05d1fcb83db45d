"""Reads loops out of a machine code listing (cuobjdump --dump-sass). Knows instructions by name only."""

from __future__ import annotations

import re
from typing import NamedTuple

_LINE = re.compile(r"^\s*/\*([0-9a-f]{4,})\*/\s+(?:@!?\w+\s+)?([A-Z][A-Z0-9_]*)([^;]*);", re.MULTILINE)
_TARGET = re.compile(r"0x([0-9a-f]+)")


_SHAPE = re.compile(r"^\.(\d+x\d+x\d+|16816|1688)\b")


class Loop(NamedTuple):
    """An innermost loop: instructions a turn, and how many of them are matrix instructions (name ends in MMA)."""

    instructions: int
    matrix: int
    shape: str
    """M x N x K of one matrix instruction where its name says it, else empty."""


def hot_loops(listing: str) -> list[Loop]:
    """The loops around matrix instructions that hold no other such loop; without any, the longest loop without a loop.

    A loop is what lies before a branch back to an earlier address. Code within it that a branch may skip, or that an
    inner loop without matrix instructions (waiting for a lock, say) repeats, is counted once.
    """
    lines = [(int(address, 16), name, rest) for address, name, rest in _LINE.findall(listing)]
    spans = {span for address, name, rest in lines if name == "BRA" for span in _backward(address, rest)}
    loops = {span: _loop(lines, span) for span in sorted(spans)}
    around_matrix = [span for span, loop in loops.items() if loop.matrix]
    if around_matrix:
        return [loops[span] for span in _innermost(around_matrix)]
    return sorted((loops[span] for span in _innermost(list(loops))), key=lambda loop: loop.instructions)[-1:]


def _innermost(spans: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Spans that hold no other. Loops nest: one that begins within another and ends beyond it is none, but the way back
    from code that was moved out of line (waiting for a copy, say)."""
    returns = {span for span in spans for other in spans if other[0] < span[0] <= other[1] < span[1]}
    loops = [span for span in spans if span not in returns]
    return [span for span in loops if not any(other != span and _within(other, span) for other in loops)]


def _backward(address: int, rest: str) -> list[tuple[int, int]]:
    """(first, last) address of the loop that a branch closes; a branch to itself only ends the program."""
    targets = [int(target, 16) for target in _TARGET.findall(rest)]
    return [(target, address) for target in targets[-1:] if target < address]


def _within(inner: tuple[int, int], outer: tuple[int, int]) -> bool:
    return outer[0] <= inner[0] and inner[1] <= outer[1]


def _loop(lines: list[tuple[int, str, str]], span: tuple[int, int]) -> Loop:
    held = [(name, rest) for address, name, rest in lines if span[0] <= address <= span[1] and name != "NOP"]
    shapes = [_SHAPE.match(rest) for name, rest in held if name.endswith("MMA")]
    shape = next((found.group(1) for found in shapes if found), "")
    return Loop(len(held), len(shapes), {"16816": "16x8x16", "1688": "16x8x8"}.get(shape, shape))
