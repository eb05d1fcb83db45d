"""Results as records: verdicts on accuracy, rows, ratios, JSON lines, the table, what was asked and what was reached.

The rule kept here: a contender whose result is wrong has a time and no ratio, nor has anything compared with it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from benchmarks.common.harness import Timing
from benchmarks.common.tables import aligned
from synpro_engine.config import UserError
from synpro_kernels.testing import assert_as_accurate


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """One tensor against its fp64 truth. Errors are maxima of absolute differences over what was compared."""

    what: str
    error: float
    plain_error: float
    wrong: str | None
    """Why it is wrong, or None."""


def judge(what: str, actual: Tensor, plain: Tensor, truth: Tensor) -> Verdict:
    """Hold a result to the tests' own standard: at most twice the error of the plain path of the same dtype."""
    wrong = None
    try:
        assert_as_accurate(actual, plain, truth, what)
    except AssertionError as failure:
        wrong = str(failure)
    comparable = actual.shape == truth.shape
    error = float((actual.detach().double() - truth).abs().max()) if comparable else float("nan")
    return Verdict(what=what, error=error, plain_error=float((plain.double() - truth).abs().max()), wrong=wrong)


@dataclass(frozen=True, kw_only=True)
class Row:
    """One contender in one pass. Times in seconds, memory in bytes, `flops` the useful ones of the pass."""

    bench: str
    contender: str
    passes: str
    computes: str
    status: str
    """`ok`, `wrong`, `not run` or `failed`."""
    reason: str | None = None
    timing: Timing | None = None
    flops: float | None = None
    tflops: float | None = None
    percent_of_peak: float | None = None
    extra_bytes: int | None = None
    result_bytes: int | None = None
    """Outputs and gradients, which every contender must hold; the rest of `extra_bytes` is workspace."""
    speedup: float | None = None
    """Time of the baseline over this one's; None where either is missing or wrong."""
    verdicts: Sequence[Verdict] = ()
    settings: Mapping[str, object] = field(default_factory=dict)
    environment: Mapping[str, object] = field(default_factory=dict)

    @property
    def right(self) -> bool:
        """Whether it ran and its result is accurate."""
        return self.status == "ok" and self.timing is not None


def ratio(slower: Row | None, faster: Row | None) -> float | None:
    """Time of the first over that of the second, or None where one is missing or wrong."""
    if slower is None or faster is None or not (slower.right and faster.right):
        return None
    assert slower.timing is not None and faster.timing is not None
    return slower.timing.median / faster.timing.median


def find(rows: Iterable[Row], contender: str, passes: str) -> Row | None:
    """Return the contender's row of a pass, or None."""
    return next((row for row in rows if (row.contender, row.passes) == (contender, passes)), None)


def complete(rows: Sequence[Row], *, baseline: str, peak: str) -> list[Row]:
    """Fill in TFLOP/s, percent of the rate of the row `peak`, and speed-ups over the baseline, all of one pass."""
    top = next((_tflops(row) for row in rows if row.contender == peak), None)
    filled = []
    for row in rows:
        rate = _tflops(row)
        share = 100 * rate / top if rate and top else None
        speedup = None if row.contender == peak else ratio(find(rows, baseline, row.passes), row)
        filled.append(replace(row, tflops=rate, percent_of_peak=share, speedup=speedup))
    return filled


def _tflops(row: Row) -> float | None:
    return row.flops / row.timing.median / 1e12 if row.timing and row.flops else None


def foreign_share(rows: Iterable[Row]) -> float:
    """The most of the machine that other processes took while any of the rows was measured."""
    return max(float(str(row.environment["foreign_cpu_share"])) for row in rows)


def read_lines(path: Path) -> list[Mapping[str, Any]]:
    """The records of a file of JSON lines. UserError that names the line which is none."""
    found: list[Mapping[str, Any]] = []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from None
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
        except ValueError:
            record = None
        if not isinstance(record, dict):
            raise UserError(f"{path}:{number}: is no record of a benchmark")
        found.append(record)
    return found


def write_lines(path: Path, records: Iterable[Row | Mapping[str, object]]) -> None:
    """Append records to a file, one JSON object a line; each line holds its settings and environment."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        for record in records:
            plain = asdict(record) if isinstance(record, Row) else record
            file.write(json.dumps(_finite(plain), allow_nan=False) + "\n")


def _finite(value: object) -> object:
    """JSON has no NaN or infinity: they become text."""
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return str(value)
    return value


# ---- for people ------------------------------------------------------------------------------------------------------

_HEADINGS = (
    "contender",
    "pass",
    "computes",
    "ms",
    "quartiles",
    "cpu ms",
    "TFLOP/s",
    "% peak",
    "extra MB",
    "results MB",
    "speed-up",
)


def table(rows: Iterable[Row]) -> str:
    """Lay the rows out in aligned columns; a row without a right result says so in place of its speed-up."""
    return "\n".join(aligned([_HEADINGS, *map(_cells, rows)], right=range(3, len(_HEADINGS) - 1)))


def _cells(row: Row) -> tuple[str, ...]:
    timing = row.timing
    verdict = f"{row.status.upper() if row.status == 'wrong' else row.status}: {row.reason}"
    return (
        row.contender,
        row.passes,
        row.computes,
        f"{timing.median * 1e3:.2f}" if timing else "-",
        f"{timing.low * 1e3:.2f}-{timing.high * 1e3:.2f}" if timing else "-",
        f"{timing.cpu_median * 1e3:.0f}" if timing else "-",
        _number(row.tflops, 3),
        _number(row.percent_of_peak, 1),
        _number(None if row.extra_bytes is None else row.extra_bytes / 1e6, 1),
        _number(None if row.result_bytes is None else row.result_bytes / 1e6, 1),
        (f"{row.speedup:.2f}x" if row.speedup else "-") if row.status == "ok" else verdict,
    )


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


@dataclass(frozen=True, kw_only=True)
class Ask:
    """One demand: a figure (None where it could not be measured, or was wrong) and the limit it is held to."""

    text: str
    figure: float | None
    limit: float
    at_least: bool
    unit: str = ""

    @property
    def reached(self) -> bool:
        """Whether the figure exists and keeps the limit."""
        if self.figure is None:
            return False
        return self.figure >= self.limit if self.at_least else self.figure <= self.limit


def asked_and_reached(asks: Iterable[Ask]) -> str:
    """Say of each demand what was asked, what was measured, and whether that is enough."""
    lines = ["asked / reached (asked at the default shape, with entropy)"]
    for ask in asks:
        figure = "not measured, or wrong" if ask.figure is None else f"{ask.figure:.3g}{ask.unit}"
        sign = ">=" if ask.at_least else "<="
        lines.append(f"  {'yes' if ask.reached else 'NO ':3}  {ask.text}: {sign} {ask.limit:g}{ask.unit} / {figure}")
    return "\n".join(lines)
