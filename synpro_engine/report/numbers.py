"""Numbers as a reader wants them: durations, counts, shares.

A missing number is an en dash; a number that is not finite is shown as what it is.
"""

import math
from collections.abc import Sequence

import numpy as np

MISSING = "–"
# Two-sided 95 % quantiles of Student's t, for 1, 2, ... degrees of freedom; of more the last one, which is wider.
_T = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131, 2.120,
      2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042)  # fmt: skip


def seconds(value: float | None) -> str:
    """`0.42 s`, `8.4 s`, `3 min 05 s`, `2 h 14 min`."""
    if value is None or not math.isfinite(value):
        return MISSING if value is None else str(value)
    if value < 59.95:
        return f"{value:.1f} s" if value >= 1 else f"{value:.2f} s"
    minutes, rest = divmod(round(value), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def count(value: float | None) -> str:
    """A whole number with thousands apart: `1,048,576`."""
    if value is None or not math.isfinite(value):
        return MISSING if value is None else str(value)
    return f"{value:,.0f}"


def compact(value: float | None) -> str:
    """Three significant digits and a letter, for axes and summaries: `1.05M`."""
    if value is None or not math.isfinite(value):
        return MISSING if value is None else str(value)
    for size, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size * 0.9995:
            return f"{float(f'{value / size:.3g}'):g}{letter}"
    return f"{value:.3g}"


def fixed(value: float | None, digits: int = 4) -> str:
    """A decimal number with a true minus sign: `−0.0312`."""
    if value is None:
        return MISSING
    return f"{value:.{digits}f}".replace("-", "−") if math.isfinite(value) else str(value)


def standard_error(values: Sequence[float]) -> float:
    """Of the mean of two or more values; NaN where one of them is, which `statistics.stdev` does not take."""
    return float(np.std(values, ddof=1)) / len(values) ** 0.5


def half_interval(values: Sequence[float]) -> float:
    """What a 95 % interval of the mean of two or more values reaches to either side of it, by Student's t."""
    return _T[min(len(values) - 1, len(_T)) - 1] * standard_error(values)


def signed(value: float | None, digits: int = 4) -> str:
    """Like `fixed`, with a plus sign where there is no minus."""
    text = fixed(value, digits)
    return f"+{text}" if value is not None and math.isfinite(value) and value > 0 else text


def percent(part: float | None, whole: float | None = 1.0) -> str:
    """`part` of `whole`, in percent with one decimal."""
    return MISSING if part is None or not whole else f"{100 * part / whole:.1f}%"
