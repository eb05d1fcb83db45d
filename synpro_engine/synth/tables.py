"""Reading tables in markdown: rows of cells between bars, however a model drew them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import dropwhile, takewhile

from synpro_engine.synth.cleaning import cleaned
from synpro_engine.synth.entries import MARKS, fault_of, kind_of, within_pair, words_of
from synpro_engine.synth.headings import TABLE, Headings
from synpro_engine.synth.keys import Keys
from synpro_engine.synth.parse import accepted, refused, why_no_entries, without_headings
from synpro_engine.synth.parsed import Cut, Entry, Parsed, Reject, size

_HEADINGS = Headings(own=TABLE)
_SLOTS = Keys(first="", second="", slots="cell|row|column|header|value|data")
_BAR = re.compile(r"(?<!\\)\|")  # \| is a bar within a cell
_RULE = re.compile(r"[ \t:|+=-]*-[ \t:|+=-]*")
_ONE_BAR = re.compile(r"[ \t]*\||[^|]*\S[ \t]\|[ \t]\S|[ \t:|-]+$")
_MOST_ROWS = 30


def parse_table(raw: str, *, min_chars: int, finished: bool = True, example: str = "") -> Parsed:
    """Read the first table: two columns or more, and up to 30 rows, each of which is an entry.

    A row's topic is its first cell; its content names the columns of the others. Rows with another number of cells than
    the head, or with nothing in them, are left out alone; so is the last one of an answer that was cut off.
    """
    cut: Counter[Cut] = Counter()
    text, ended = cleaned(raw, cut)
    whole = finished or ended
    body, headed = without_headings(text, _HEADINGS, cut)
    if headed and not body.strip():
        return refused(Reject.EMPTY if finished else Reject.TRUNCATED)
    lines = [line for line in body.split("\n") if line.strip()]
    rows = _first_table(lines, cut)
    if rows and not whole and rows[-1] == lines[-1]:
        cut[Cut.UNFINISHED] += size(rows.pop())
    head, entries, kept = _read(rows, cut, words_of(example))
    if not entries:
        return refused(why_no_entries(headed, cut, finished=whole))
    if sum(len(entry.topic) + len(entry.content) for entry in entries) < min_chars:
        return refused(Reject.TOO_SHORT)
    table = "\n".join(map(_line, (head, ["---"] * len(head), *kept)))
    return accepted(raw, _HEADINGS, table, tuple(entries), size(TABLE.text) * bool(headed) + size(table), cut)


def _first_table(lines: Sequence[str], cut: Counter[Cut]) -> list[str]:
    """Its lines; the others are counted. A rule alone makes no table, and a line with one bar is prose."""
    before = list(takewhile(lambda line: not _is_row(line), lines))
    rows = list(takewhile(_is_row, dropwhile(lambda line: not _is_row(line), lines)))
    for line in (*before, *lines[len(before) + len(rows) :]):
        cut[kind_of(line)] += size(line)
    return rows


def _is_row(line: str) -> bool:
    bars = len(_BAR.findall(line))
    return bars >= 2 or (bars == 1 and _ONE_BAR.match(line) is not None)


def _cells(line: str) -> list[str]:
    cells = [_unmarked(" ".join(cell.split())) for cell in _BAR.split(line.strip())]
    # The bars at both ends are drawn or left out.
    cells = cells[1:] if len(cells) > 1 and not cells[0] else cells
    return cells[:-1] if len(cells) > 1 and not cells[-1] else cells


def _unmarked(cell: str) -> str:
    """Without marks in pairs around all of it. What backticks hold is code and stays as it is; so do single marks."""
    for mark in MARKS:
        inner = within_pair(cell, mark)
        if inner is None or (mark == "__" and " " not in inner):  # __init__ is a name, and seldom an emphasis
            continue
        if mark == "`":
            return inner
        cell = inner
    return cell


def _read(
    rows: Sequence[str], cut: Counter[Cut], example: frozenset[str]
) -> tuple[list[str], list[Entry], list[list[str]]]:
    """The head, and the rows that say something, as entries and as cells."""
    cells = [(line, _cells(line)) for line in rows if not _RULE.fullmatch(line)]
    head = cells[0][1] if cells else []
    if len(head) < 2 or not any(head):
        return head, [], []
    kept: dict[Entry, list[str]] = {}  # by what they say, so that each stands once
    for line, row in cells[1:]:
        entry = Entry(topic=row[0], content="; ".join(_named(head, row)))
        fault = _fault(entry, head, row, example)
        if fault is None and entry in kept:
            fault = Cut.DUPLICATE
        if fault is None and len(kept) == _MOST_ROWS:
            fault = Cut.TOO_MANY
        if fault is None:
            kept[entry] = row
        else:
            cut[fault] += size(line)
    return head, list(kept), list(kept.values())


def _named(head: Sequence[str], row: Sequence[str]) -> Iterator[str]:
    for name, cell in zip(head[1:], row[1:], strict=False):
        if cell:
            yield f"{name}: {cell}" if name else cell


def _fault(entry: Entry, head: Sequence[str], row: Sequence[str], example: frozenset[str]) -> Cut | None:
    if len(row) != len(head):
        return Cut.CELLS
    # By what the cells say themselves: the names of the columns are no content.
    said = Entry(topic=entry.topic, content=" ".join(row[1:]).strip())
    return Cut.DUPLICATE if list(row) == list(head) else fault_of(said, example, _SLOTS)


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"
