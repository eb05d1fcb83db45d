"""The closing lines in the terminal: seconds of each stage, key numbers, where the report lies.

Plain text of at most 100 columns, which also reads well in a log file; the caller prints it.
"""

from collections.abc import Container, Iterator, Sequence
from pathlib import Path

from synpro_engine.report.data import ReportData
from synpro_engine.report.headline import facts, statement
from synpro_engine.report.numbers import seconds
from synpro_engine.report.sections.timeline import StageTiming, Timeline

_BAR = 24
_WIDTH = 100


def closing_summary(data: ReportData, report: Path | None = None) -> str:
    """The summary as one string without a final newline.

    Args:
        data: what the page was built from.
        report: the page; named in the last line, absolutely, so that it can be opened from anywhere.
    """
    lines = [printable(data.title), ""]
    lines += _stage_lines(data.timeline)
    lines += [*_fact_lines(data), "", statement(data)[0]]
    if data.timeline.unfinished:
        lines += [printable(f"Without a result so far: {data.timeline.told_unfinished}.")]
    if report is not None:
        lines += [f"Report: {report.resolve()}"]
    return "\n".join(lines)


def aligned(rows: Sequence[Sequence[str]], left: Container[int] = (0, 1)) -> Iterator[str]:
    """Rows in columns as wide as their widest cell. left: numbers of the columns that are not set to the right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        cells = zip(row, widths, strict=True)
        yield "  ".join(cell.ljust(w) if n in left else cell.rjust(w) for n, (cell, w) in enumerate(cells)).rstrip()


def printable(text: str) -> str:
    """`text` on one line and without control characters, which could drive the terminal."""
    return "".join(letter if letter.isprintable() else " " for letter in text)


def _stage_lines(timeline: Timeline) -> list[str]:
    begun = [stage for stage in timeline.stages if stage.status != "waiting"]
    longest = max((stage.seconds or 0.0 for stage in begun), default=0.0)
    name_width = max((len(stage.name) for stage in begun), default=0)
    lines = [f"  {printable(stage.name):<{name_width}}  {_stage_tail(stage, longest)}" for stage in begun]
    if lines:
        lines += [f"  {'total':<{name_width}}  {seconds(timeline.total_seconds):>12}", ""]
    return lines


def _stage_tail(stage: StageTiming, longest: float) -> str:
    share = (stage.seconds or 0.0) / longest if longest else 0.0
    bar = "█" * max(round(share * _BAR), 1 if stage.seconds else 0)
    note = "" if stage.status == "done" else stage.status
    return f"{seconds(stage.seconds):>12}  {bar:<{_BAR}}  {note}".rstrip()


def _fact_lines(data: ReportData) -> list[str]:
    rows = [fact for fact in facts(data) if fact.label != "Time in stages"]  # the stage lines say it
    width = max((len(fact.label) for fact in rows), default=0)
    lines = [f"  {fact.label:<{width}}  {fact.value}" + (f"  ({fact.note})" if fact.note else "") for fact in rows]
    return [line if len(line) <= _WIDTH else line[: _WIDTH - 1] + "…" for line in map(printable, lines)]
