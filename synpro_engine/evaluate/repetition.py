"""A reading of a curve of unique text that knows what reading a text again is worth, beside `effective_tokens`' own.

Muennighoff et al. (arXiv 2305.16264): U unique tokens, read for D in all, are worth D' = U + U R* (1 - exp(-R / R*))
tokens that are read once, R = D / U - 1 being the times that they are read again; the loss is E + B D'^-b. R* is the
paper's and not fitted: a curve has too few sizes to tell it. So sizes may be read for different totals, and an arm is
held to what unique text would be worth if it were read for the arm's own.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from synpro_engine.evaluate.effective_tokens import READINGS, Reading, UniqueCurve, fitted_power_law

Floats = NDArray[np.floating[Any]]
R_STAR = 15.39
"""Of data, as fitted by the paper: repetitions by which what another one adds has fallen to 1 / e."""
DECAY = "repetition decay"
NAMES = (*READINGS, DECAY)
"""Of all readings."""
_PLACES = 2000  # of the table that the law is inverted by


def once_read(unique: Floats, total: Floats | float) -> Floats:
    """D' of so many unique tokens and so many in all, elementwise; what is not read counts for nothing."""
    read = np.minimum(unique, total)
    return read * (1 - R_STAR * np.expm1(-(total / read - 1) / R_STAR))


def repetition_decay(total_S: Floats, total: float) -> Reading:
    """By the law, fitted through sizes that were trained on `total_S` tokens: unique tokens of a training on `total`.

    Says nothing below the smallest size and beyond the largest one, each read for `total` tokens.
    """

    def reading(tokens_S: Floats, loss_S: Floats, loss: float) -> float:
        worth_S = once_read(tokens_S, total_S)
        law = fitted_power_law(worth_S, loss_S)
        if law is None:
            return math.nan
        # More text than can be read adds nothing.
        last = max(tokens_S[0], min(tokens_S[-1], total))
        unique_P = np.geomspace(tokens_S[0], last, _PLACES)
        worth_P = once_read(unique_P, total)
        if loss > law.at(worth_P[0] / worth_S[0]):
            return 0.0
        if loss < law.at(worth_P[-1] / worth_S[0]):
            return math.inf
        wanted = worth_S[0] * (law.scale / (loss - law.floor)) ** (1 / law.exponent)
        return float(np.interp(wanted, worth_P, unique_P))

    return reading


def readings_of(curve: UniqueCurve, total: float | None) -> dict[str, Reading]:
    """By name: `READINGS`, and where all tokens are known, of the sizes and of what is held to them, the law."""
    if curve.totals is None or total is None:
        return READINGS
    return READINGS | {DECAY: repetition_decay(np.array(curve.totals), total)}
