"""Whether a paraphrase keeps the structure of its source: paragraphs, lists, headings, lines, in whatever language."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import groupby

from synpro_engine.reward.types import Candidate
from synpro_engine.reward.words import common_subsequence

_KINDS = (
    ("list", re.compile(r"\s*(?:[-*+\u2022]|\(?\d{1,3}[.)])\s+\S")),
    ("heading", re.compile(r"#{1,6}\s|[^.!?,;]{1,60}:\s*$|(?=.*[A-Z])[^a-z.!?]{2,80}$")),
    ("table", re.compile(r"\s*\|.*\||.*\t.*\t")),
)


def _kind(line: str) -> str:
    if not line.strip():
        return "break"
    return next((kind for kind, pattern in _KINDS if pattern.match(line)), "prose")


def _lines(text: str) -> list[str]:
    """The kind of each line, with runs of empty lines as one."""
    kinds = [_kind(line) for line in text.strip().split("\n")]
    return [k for kind, run in groupby(kinds) for k in (["break"] if kind == "break" else run)]


def structure_match(text: str, source: str) -> float:
    """How alike the structures of two texts are, in [0, 1].

    The mean of two: the share of blocks (paragraphs, list items, headings, table rows) that match in order, and
    the same of single lines, so that broken or joined lines within a paragraph cost half.
    """
    of_text, of_source = _lines(text), _lines(source)
    return (_ratio(_blocks(of_text), _blocks(of_source)) + _ratio(of_text, of_source)) / 2


def _blocks(lines: Sequence[str]) -> list[str]:
    merged = (["prose"] if kind == "prose" else run for kind, run in groupby(lines))
    return [kind for run in merged for kind in run if kind != "break"]


def _ratio(a: Sequence[str], b: Sequence[str]) -> float:
    """Twice the longest common subsequence over both lengths (Dice): 1 for equal, 0 for nothing in common."""
    return 2 * common_subsequence(a, b) / (len(a) + len(b)) if a or b else 1.0


class StructureReward:
    """How well the text keeps its source's paragraphs, lists, headings and line structure, from 0 to 1."""

    name = "structure"
    range = (0.0, 1.0)

    def __call__(self, candidates: Sequence[Candidate]) -> list[float]:
        """Values [C]."""
        return [structure_match(c.parsed.text, c.source) for c in candidates]
