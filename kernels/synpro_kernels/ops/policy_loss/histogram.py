"""Counts of probability ratios, which add up over micro-batches and ranks as their quantiles would not."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

_MAGNITUDES = tuple(1e-3 * 1.5**n for n in range(22))  # up to a ratio of 147 to 1
RATIO_EDGES = (*(-edge for edge in reversed(_MAGNITUDES)), *_MAGNITUDES)
"""Between bins, of log ratios. Nothing that moves a policy by less than a thousandth needs telling apart."""


def ratio_counts(ratio_N: Tensor) -> Tensor:
    """How many of the ratios are in each of the `len(RATIO_EDGES) + 1` bins, in the type of `ratio_N`. No host wait."""
    edges = torch.tensor(RATIO_EDGES, dtype=ratio_N.dtype, device=ratio_N.device)
    bin_N = torch.bucketize(ratio_N.log(), edges)
    return ratio_N.new_zeros(len(RATIO_EDGES) + 1).scatter_add_(0, bin_N, torch.ones_like(ratio_N))


def ratio_quantile(counts: Sequence[float], share: float) -> float:
    """The ratio that `share` of those counted do not pass; NaN where none was.

    A bin's ratios are taken to be spread evenly over it in their logarithms, and those beyond the outermost edges to
    be at them: right to a fifth of the logarithm, or to a thousandth.
    """
    wanted, passed = share * math.fsum(counts), 0.0
    bounds = (RATIO_EDGES[0], *RATIO_EDGES, RATIO_EDGES[-1])
    for (low, high), count in zip(pairwise(bounds), counts, strict=True):
        if count and passed + count >= wanted:
            return math.exp(low + (high - low) * (wanted - passed) / count)
        passed += count
    return math.nan
