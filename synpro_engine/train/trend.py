"""How fast a noisy loss falls at its end: a line through as many of the last evaluations as lie on one.

Three steps, on y = ln(loss) over the number of the evaluation, so that a slope is a relative change:

1. What was no part of training's course is set aside (`settled`): evaluations that are not finite, single spikes, and
   all that came before a jump that stayed.
2. The window: least-squares lines through the last 4, 5, ... evaluations, the longest whose slope agrees with those of
   all shorter ones within `AGREE` standard errors (Lepski's rule; the noise here is that of second differences, which
   neither a slope nor a bend enters). A long steady fall is judged as a whole, a loss that flattens by its flat end.
3. The interval: the slope's standard error from the residuals of that line, times `width`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

SHORTEST, LONGEST = 4, 60
"""Evaluations of the shortest window, and the most that are looked back on."""
# Standard errors, far beyond the usual 2: up to 57 windows are compared with all shorter ones at every evaluation.
AGREE = 4.0
SPIKE = 5.0
"""Standard deviations of the noise by which a single evaluation stands out."""
_REFERENCE = 12


@dataclass(frozen=True, kw_only=True)
class Fall:
    """By what share of itself the loss falls in one evaluation (negative: it rises), measured on a window.

    low, high: bounds of the interval. noise: of one evaluation, as a share of the loss. evaluations: in the window.
    """

    value: float
    low: float
    high: float
    noise: float
    evaluations: int


def width(evaluations: int) -> float:
    """Standard errors to either side of the slope: 1.8, which leaves out 5 % on a side, and more below 12 evaluations.

    Few evaluations say little about their own noise, and every new one gives luck another chance to look like an end;
    a decision on few is left to losses with hardly any noise.
    """
    # Far wider than Student's t, which mends the unknown noise alone (2.9 for 5 % on 4 points, against 28 here): the
    # rest is for asking again at every evaluation.
    return 1.8 * max(1.0, _REFERENCE / evaluations) ** 2.5


def measure_fall(losses: Sequence[float], small: float) -> Fall | None:
    """How fast `losses` (the newest last) fall now; None while there are too few to tell, and where the newest is left
    out as a spike or is not finite.

    small: a relative change between two evaluations that is no spike, however little noise there is.
    """
    recent = losses[-LONGEST:]
    x_N, y_N = settled(recent, small)
    # The newest must be among the settled ones, or a spike would be judged by the line before it, once more.
    if len(x_N) < SHORTEST or x_N[-1] != len(recent) - 1:
        return None
    slope_W, sxx_W, rss_W = _lines(x_N, y_N)
    noise_of_one = math.sqrt(float(np.mean(_second_differences(x_N, y_N)[-36:] ** 2)))
    at = _longest_agreeing(slope_W, noise_of_one / np.sqrt(sxx_W))
    evaluations = at + SHORTEST
    # Two degrees of freedom go into the line.
    noise = math.sqrt(rss_W[at] / (evaluations - 2))
    fall, margin = -float(slope_W[at]), width(evaluations) * noise / math.sqrt(sxx_W[at])
    return Fall(value=fall, low=fall - margin, high=fall + margin, noise=noise, evaluations=evaluations)


def settled(losses: Sequence[float], small: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(numbers, ln losses) of the evaluations that show training's course, oldest first.

    An evaluation that stands above the last settled one by more than a spike waits for the next: if that is back, it
    was a spike and is left out; if that is up there too, the course begins anew with the two.
    """
    finite = [(n, math.log(loss)) for n, loss in enumerate(losses) if math.isfinite(loss) and loss > 0]
    x_N, y_N = np.array([n for n, _ in finite], dtype=float), np.array([y for _, y in finite])
    # The median, scaled to a normal's deviation, since the spikes that are looked for would raise a mean. A floor of
    # `small` keeps losses without noise from having spikes everywhere.
    rough = 1.4826 * float(np.median(np.abs(_second_differences(x_N, y_N)))) if len(x_N) > 2 else 0.0
    spike = SPIKE * max(rough, small)
    course, waiting = [], []
    for point in finite:
        # Upward only: a fall, however steep, is what training is for.
        if course and point[1] - course[-1][1] > spike:
            waiting.append(point)
            if len(waiting) == 2:
                course, waiting = waiting, []
        else:
            course.append(point)
            waiting = []
    return np.array([n for n, _ in course], dtype=float), np.array([y for _, y in course])


def _lines(
    x_N: NDArray[np.float64], y_N: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Least-squares slope, sum of squares of x and of the residuals for the last 4, 5, ... N points, [N - 3] each."""
    u_N, v_N = x_N[::-1] - x_N[-1], y_N[::-1] - y_N[-1]  # from the newest: each window is a longer head of these
    count = np.arange(1, len(u_N) + 1)
    # Running sums give every window in O(N) at once. Taken from the newest point, x and y
    # are small, and little cancels.
    u, v, uu, uv, vv = (np.cumsum(term) for term in (u_N, v_N, u_N * u_N, u_N * v_N, v_N * v_N))
    sxx, sxy, syy = (uu - u * u / count, uv - u * v / count, vv - v * v / count)
    sxx, sxy, syy = (sums[SHORTEST - 1 :] for sums in (sxx, sxy, syy))
    # Rounding may leave a residual sum a hair below 0 where the points lie on a line, and a root is taken of it.
    return sxy / sxx, sxx, np.maximum(syy - sxy * sxy / sxx, 0.0)


def _longest_agreeing(slope_W: NDArray[np.float64], error_W: NDArray[np.float64]) -> int:
    """Index of the last window before the first one that falls faster than a shorter one says, beyond noise."""
    # Of nested windows the shorter one's slope is the longer one's plus independent noise: variances subtract.
    variance = np.maximum(error_W[:, None] ** 2 - error_W[None, :] ** 2, 0.0)
    # The last term forgives rounding where there is no noise at all, and every error is 0.
    faster = slope_W[:, None] - slope_W[None, :] > AGREE * np.sqrt(variance) + 1e-12
    breaks = np.triu(faster, 1).any(axis=0)
    return int(np.argmax(breaks)) - 1 if breaks.any() else len(slope_W) - 1


def _second_differences(x_N: NDArray[np.float64], y_N: NDArray[np.float64]) -> NDArray[np.float64]:
    """Each inner point less the line through its neighbours, scaled to the noise of one point, [N - 2]."""
    before, after = np.diff(x_N)[:-1], np.diff(x_N)[1:]
    left, right = after / (before + after), before / (before + after)
    # Var = (1 + left² + right²) of one point's; with equal gaps the weights are 1/2 and this
    # is the usual second difference.
    return (y_N[1:-1] - left * y_N[:-2] - right * y_N[2:]) / np.sqrt(1.0 + left**2 + right**2)
