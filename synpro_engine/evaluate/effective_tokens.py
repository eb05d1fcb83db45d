"""Effective tokens: how much unique text plain training needs for a loss, with an interval over seeds and fits.

A curve says what training on so many unique tokens comes to, by several seeds each. Readings of it stand beside each
other, for none is the truth: `power_law` knows its form and errs where that is wrong, `isotonic` knows only that more
text does not hurt and errs between its points, and the law of `repetition` counts how often text was read besides.
None says anything beyond the sizes that were measured.
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
    totals: tuple[float, ...] | None = None
    """Of each size: the tokens that it was trained on, repetitions too; None where nobody knows."""

    def __post_init__(self) -> None:
        if len(self.tokens) < 2 or len(self.tokens) != len(self.losses) or not all(self.losses):
            raise UserError("effective tokens: a curve needs losses of at least two sizes of text")
        if list(self.tokens) != sorted(set(self.tokens)) or self.tokens[0] <= 0:
            raise UserError("effective tokens: sizes of a curve must be above 0 and grow")
        if self.totals is not None and (len(self.totals) != len(self.tokens) or min(self.totals) <= 0):
            raise UserError("effective tokens: each size of a curve has its tokens in all, above 0")
        if not np.isfinite([loss for some in self.losses for loss in some]).all():
            raise UserError("effective tokens: a loss of the curve is not finite")

    @property
    def means(self) -> Floats:
        """Mean loss of each size, [S]."""
        return np.array([np.mean(some) for some in self.losses])

    @property
    def level(self) -> int:
        """Sizes at the beginning that `isotonic` takes for one, as their losses rise; 1 where none do."""
        falling_S = pooled(self.means)
        return int((falling_S == falling_S[0]).sum()) if falling_S[0] != self.means[0] else 1


@dataclass(frozen=True, kw_only=True)
class Multiple:
    """Tokens over the curve's smallest size. 0 and infinity stand for beyond its ends, where nothing is known."""

    value: float
    low: float
    high: float
    """Ends of the 95 % interval, over seeds of the curve and of what is held to it."""
    spread: bool = True
    """Whether anything has two seeds, without which there is no interval."""

    def told(self, curve: UniqueCurve) -> str:
        """As text: `1.84 (1.62 to > 8)`; `1.84 (one seed)`, which has no interval; of the smallest size itself `1`."""
        if self.low == self.high == 1:
            return "1"
        value, low, high = (_told(each, curve) for each in (self.value, self.low, self.high))
        return f"{value} ({low} to {high})" if self.spread else f"{value} (one seed)"


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


_ENOUGH = 5
"""Seeds whose own spread, and what of it is common, is known well enough to go by it alone."""


def effective_multiple(
    curve: UniqueCurve,
    losses: Sequence[float],
    reading: Reading,
    *,
    resamples: int = 2000,
    seed: int = 0,
    paired: bool = False,
) -> Multiple:
    """How many times the curve's smallest text is worth what came to `losses` (by seed); 1 for that text's own.

    The interval holds the error of the curve and of its fit: percentiles over means that are drawn from what the seeds
    leave open of them (`_drawn_means`). Resampling so few seeds themselves (Efron and Tibshirani 1993) gives one that
    holds the truth in 68 % of cases of two seeds and in 81 % of three. A draw that no curve fits is without bounds. Of
    one seed each there is no spread to go by, and the interval is a point.

    paired: the curve's sizes and `losses` have one order of the same seeds, so that what is common to a seed's losses
    (a world, an order of text) moves all of them; counts from `_ENOUGH` seeds. Without it, where losses of a seed go
    together all the same, the interval is too wide.
    UserError for losses that are none, not finite, or paired and of another number.
    """
    if not losses or not np.isfinite(losses).all():
        raise UserError("effective tokens: losses to be held to a curve must be there, and finite")
    groups = [*curve.losses, losses]
    if paired and len(set(map(len, groups))) > 1:
        raise UserError("effective tokens: seeds are paired where every size has as many losses")
    spread = any(len(some) > 1 for some in groups)
    tokens_S = np.array(curve.tokens)
    value = reading(tokens_S, curve.means, float(np.mean(losses))) / tokens_S[0]
    if tuple(losses) == curve.losses[0]:  # by definition, wherever a fit or pooled losses pass by it
        return Multiple(value=1.0, low=1.0, high=1.0)
    if math.isnan(value):
        return Multiple(value=math.nan, low=0.0, high=math.inf, spread=spread)
    together = paired and len(losses) >= _ENOUGH
    mean_RG = (_drawn_together if together else _drawn_means)(groups, resamples, np.random.default_rng(seed))
    found_R = np.array([reading(tokens_S, mean_G[:-1], mean_G[-1]) for mean_G in mean_RG]) / tokens_S[0]
    # Of ranks and not between them, for infinities lie among them.
    low, high = (
        np.sort(np.nan_to_num(found_R, nan=unfitted, posinf=math.inf))[round(share * (resamples - 1))]
        for share, unfitted in ((0.025, 0.0), (0.975, math.inf))
    )
    return Multiple(value=float(value), low=float(low), high=float(high), spread=spread)


def _drawn_together(losses: Sequence[Sequence[float]], draws: int, rng: np.random.Generator) -> Floats:
    """As `_drawn_means`, of groups of the same seeds: by their covariance, so that each linear sum has Student's t."""
    loss_GN = np.array(losses)
    seeds = loss_GN.shape[1]
    apart_GN = loss_GN - loss_GN.mean(1, keepdims=True)
    normal_RN, chi_R1 = rng.standard_normal((draws, seeds)), rng.chisquare(seeds - 1, (draws, 1))
    return loss_GN.mean(1) + normal_RN @ apart_GN.T / np.sqrt(seeds * chi_R1)


def _drawn_means(losses: Sequence[Sequence[float]], draws: int, rng: np.random.Generator) -> Floats:
    """Means of each group of seeds as far as these tell them, [draws, groups]: by Student's t around what was found.

    A group of few seeds goes by the spread of all together, or by its own where that is more, for groups may differ in
    it; one of `_ENOUGH` or more by its own. All that go by one spread go by the same draw of it.
    """
    count_G = np.array([len(some) for some in losses])
    mean_G, square_G = np.array([np.mean(some) for some in losses]), np.array([np.var(some) for some in losses])
    free_G = count_G - 1
    free = free_G.sum()
    if not free:
        return np.tile(mean_G, (draws, 1))
    together, own_G = (square_G * count_G).sum() / free, square_G * count_G / np.maximum(free_G, 1)
    few_G = count_G < _ENOUGH
    error_G = np.sqrt(np.where(few_G, np.maximum(together, own_G), own_G) / count_G)
    common_R1 = np.sqrt(free / rng.chisquare(free, (draws, 1)))
    own_RG = np.sqrt(free_G / rng.chisquare(np.maximum(free_G, 1), (draws, len(count_G))))
    return mean_G + error_G * np.where(few_G, common_R1, own_RG) * rng.standard_normal((draws, len(count_G)))
