"""Effective tokens: how much unique text plain training needs for a loss, with an interval over seeds and fits.

A curve says what training on so many unique tokens comes to, by several seeds each. Two readings of it stand beside
each other, for neither is the truth: `power_law` knows its form and errs where that is wrong, `isotonic` knows only
that more text does not hurt and errs between its points. Neither says anything beyond the sizes that were measured.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from synpro_engine.config import UserError

Floats = NDArray[np.floating[Any]]
Reading = Callable[[Floats, Floats, float], float]
"""From sizes [S], mean losses [S] and a loss to the tokens that have it: 0 below the curve, infinity above it."""


@dataclass(frozen=True, kw_only=True)
class UniqueCurve:
    """Losses of training on unique tokens. Raises UserError where there are fewer than two sizes, or none of a size."""

    tokens: tuple[float, ...]
    """Unique tokens, from the fewest to the most."""
    losses: tuple[tuple[float, ...], ...]
    """Of each size: by seed, nats per token."""

    def __post_init__(self) -> None:
        if len(self.tokens) < 2 or len(self.tokens) != len(self.losses) or not all(self.losses):
            raise UserError("effective tokens: a curve needs losses of at least two sizes of text")
        if list(self.tokens) != sorted(set(self.tokens)) or self.tokens[0] <= 0:
            raise UserError("effective tokens: sizes of a curve must be above 0 and grow")
        if not np.isfinite([loss for some in self.losses for loss in some]).all():
            raise UserError("effective tokens: a loss of the curve is not finite")

    @property
    def means(self) -> Floats:
        """Mean loss of each size, [S]."""
        return np.array([np.mean(some) for some in self.losses])


@dataclass(frozen=True, kw_only=True)
class Multiple:
    """Tokens over the curve's smallest size. 0 and infinity stand for beyond its ends, where nothing is known."""

    value: float
    low: float
    high: float
    """Ends of the 95 % interval: percentiles over resampled seeds, of the curve and of what is held to it."""

    def told(self, curve: UniqueCurve) -> str:
        """As text: `1.84 (1.62 to > 8)`."""
        value, low, high = (_told(each, curve) for each in (self.value, self.low, self.high))
        return f"{value} ({low} to {high})"


def _told(multiple: float, curve: UniqueCurve) -> str:
    if math.isinf(multiple):
        return f"> {curve.tokens[-1] / curve.tokens[0]:.3g}"
    if math.isnan(multiple):  # the curve's losses do not fall with the text
        return "none"
    return "< 1" if multiple == 0 else f"{multiple:.2f}"


def isotonic(tokens_S: Floats, loss_S: Floats, loss: float) -> float:
    """Linear in ln(tokens) between the sizes, once losses that rise with them are pooled (Barlow et al. 1972)."""
    falling_S = pooled(loss_S)
    if loss > falling_S[0]:
        return 0.0
    if loss < falling_S[-1]:
        return math.inf
    # The fewest tokens that have the loss: of a flat piece, its beginning.
    place = int(np.argmax(falling_S <= loss))
    if place == 0:
        return float(tokens_S[0])
    high, low = falling_S[place - 1], falling_S[place]
    done = (high - loss) / (high - low)
    return float(tokens_S[place - 1] * (tokens_S[place] / tokens_S[place - 1]) ** done)


def pooled(loss_S: Floats) -> Floats:
    """The nearest losses in squares that never rise, by pooling adjacent violators."""
    pools: list[tuple[float, int]] = []
    for loss in loss_S:
        pools.append((float(loss), 1))
        while len(pools) > 1 and pools[-1][0] > pools[-2][0]:
            (b, n), (a, m) = pools.pop(), pools.pop()
            pools.append(((a * m + b * n) / (m + n), m + n))
    return np.repeat([mean for mean, _ in pools], [count for _, count in pools])


def power_law(tokens_S: Floats, loss_S: Floats, loss: float) -> float:
    """By L = E + B U^-b, least squares (Hoffmann et al., arXiv 2203.15556, of one size of model); needs three sizes.

    For each b on a grid E and B are linear; the curve's ends bound what it says, as those of `isotonic` do.
    """
    law = fitted_power_law(tokens_S, loss_S)
    if law is None:
        return math.nan
    if loss > law.at(1.0):
        return 0.0
    if loss < law.at(tokens_S[-1] / tokens_S[0]):
        return math.inf
    return float(tokens_S[0] * (law.scale / (loss - law.floor)) ** (1 / law.exponent))


class PowerLaw(NamedTuple):
    """floor + scale x m^-exponent, of m times the curve's smallest text."""

    floor: float
    scale: float
    exponent: float

    def at(self, multiple: float) -> float:
        """The loss there."""
        return self.floor + self.scale * multiple**-self.exponent


def fitted_power_law(tokens_S: Floats, loss_S: Floats) -> PowerLaw | None:
    """What `power_law` goes by; None where the losses do not fall with the text."""
    if len(tokens_S) < 3:
        raise UserError("effective tokens: a power law needs losses of at least three sizes of text")
    exponent_B, basis_BS2, solve_B2S = _designs(tuple(tokens_S / tokens_S[0]))
    fitted_B2 = solve_B2S @ loss_S
    error_B = np.square((basis_BS2 @ fitted_B2[:, :, None])[..., 0] - loss_S).sum(1)
    error_B[(fitted_B2 < 0).any(1)] = math.inf
    best = int(error_B.argmin())
    if math.isinf(error_B[best]):
        return None
    return PowerLaw(float(fitted_B2[best, 0]), float(fitted_B2[best, 1]), float(exponent_B[best]))


@cache
def _designs(scaled_S: tuple[float, ...]) -> tuple[Floats, Floats, Floats]:
    """Exponents [B], the two terms of the law at each size [B, S, 2], and what solves for their factors [B, 2, S]."""
    exponent_B = np.geomspace(0.02, 3.0, 400)
    decay_BS = np.array(scaled_S) ** -exponent_B[:, None]
    basis_BS2 = np.stack([np.ones_like(decay_BS), decay_BS], axis=-1)
    return exponent_B, basis_BS2, np.linalg.pinv(basis_BS2)


READINGS: dict[str, Reading] = {"isotonic": isotonic, "power law": power_law}


def effective_multiple(
    curve: UniqueCurve, losses: Sequence[float], reading: Reading, *, resamples: int = 2000, seed: int = 0
) -> Multiple:
    """How many times the curve's smallest text is worth what came to `losses` (by seed).

    The interval is a bootstrap over seeds, those of each size and those of `losses` anew each time (Efron and
    Tibshirani 1993), so the error of the curve and of its fit is in it; of one seed nothing is resampled, and an
    interval of such alone is a point. UserError for losses that are none, or not finite.
    """
    if not losses or not np.isfinite(losses).all():
        raise UserError("effective tokens: losses to be held to a curve must be there, and finite")
    tokens_S, rng = np.array(curve.tokens), np.random.default_rng(seed)
    found_R = np.empty(resamples)
    for number in range(resamples):
        mean_S = np.array([np.mean(rng.choice(some, len(some))) for some in curve.losses])
        found_R[number] = reading(tokens_S, mean_S, float(np.mean(rng.choice(losses, len(losses)))))
    found_R = np.sort(found_R[~np.isnan(found_R)]) / tokens_S[0]
    value = reading(tokens_S, curve.means, float(np.mean(losses))) / tokens_S[0]
    if not len(found_R) or math.isnan(value):
        return Multiple(value=math.nan, low=0.0, high=math.inf)
    # Of ranks and not between them, for infinities lie among them.
    low, high = (found_R[round(share * (len(found_R) - 1))] for share in (0.025, 0.975))
    return Multiple(value=float(value), low=float(low), high=float(high))
