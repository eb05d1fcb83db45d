"""Fitting a head to labelled evidence, and measuring what it has learnt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from synpro_engine.reward.head import Array, Head, scaled

_HIDDEN = 8
_FITS = 4
_DECAY = 1.6  # over the number of examples: few say little against what is likely beforehand
_STEPS = 300
_BINS = 10


def fit_head(evidence_NF: Array, labels_N: Array, weights_N: Array, seed: int) -> Head:
    """The mean of several heads, each of least weighted cross-entropy with weight decay (L-BFGS in fp64).

    They differ by the weights that they begin with; their mean is steadier than each. True and false weigh the same.
    """
    mean, scale = evidence_NF.mean(0), evidence_NF.std(0) + 1e-3
    features, labels, weights = (
        torch.from_numpy(each) for each in (scaled(evidence_NF, mean, scale), labels_N, balanced(labels_N, weights_N))
    )
    fits = [_fit(features, labels, weights, seed * _FITS + each) for each in range(_FITS)]
    hidden, bias, out = (torch.stack(parts) for parts in zip(*fits, strict=True))
    return Head(
        mean=mean.tolist(), scale=scale.tolist(),
        hidden=hidden.flatten(0, 1).tolist(), hidden_bias=bias.flatten().tolist(),
        out=[*(out[:, :-1] / _FITS).flatten().tolist(), out[:, -1].mean().item()],
        recipe={}, measured={},
    )  # fmt: skip


def _fit(features_NF: Tensor, labels_N: Tensor, weights_N: Tensor, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Hidden weights [H, F] and biases [H], output weights with the bias [H + 1]."""
    made = torch.Generator().manual_seed(seed)
    shapes = ((_HIDDEN, features_NF.shape[1]), (_HIDDEN,), (_HIDDEN + 1,))
    hidden, bias, out = (
        torch.randn(shape, generator=made, dtype=torch.float64).mul_(0.2).requires_grad_() for shape in shapes
    )
    solver = torch.optim.LBFGS([hidden, bias, out], max_iter=_STEPS, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        solver.zero_grad()
        logits = torch.tanh(features_NF @ hidden.T + bias) @ out[:-1] + out[-1]
        value = torch.nn.functional.binary_cross_entropy_with_logits(logits, labels_N, weights_N, reduction="sum")
        value = value + _DECAY / len(labels_N) * (hidden.square().sum() + out[:-1].square().sum())
        value.backward()
        return value

    solver.step(loss)
    return hidden.detach(), bias.detach(), out.detach()


def calibrated(head: Head, evidence_NF: Array, labels_N: Array, weights_N: Array) -> Head:
    """The head with the slope and offset of least cross-entropy on pairs that it was not fitted to (Platt 1999)."""
    weights_N, logits_N = balanced(labels_N, weights_N), head.logits(evidence_NF)
    slope, offset = 1.0, 0.0
    for _ in range(50):  # Newton's steps
        p = 0.5 + 0.5 * np.tanh((slope * logits_N + offset) / 2)
        rows = np.stack([logits_N, np.ones_like(logits_N)])
        curve = (rows * (weights_N * p * (1 - p) + 1e-9)) @ rows.T + 1e-6 * np.eye(2)
        step = np.linalg.solve(curve, rows @ (weights_N * (p - labels_N)))
        slope, offset = slope - step[0], offset - step[1]
    return replace(head, slope=float(slope), offset=float(offset)).rounded()


def balanced(labels_N: Array, weights_N: Array) -> Array:
    """The weights scaled so that true and false pairs sum to a half each."""
    of_true, of_false = weights_N[labels_N == 1].sum(), weights_N[labels_N == 0].sum()
    return np.where(labels_N == 1, weights_N / of_true, weights_N / of_false) / 2


def auc(true: Sequence[float] | Array, false: Sequence[float] | Array) -> float:
    """Chance that a true pair is rated above a false one; ties count half."""
    ordered, true_N = np.sort(np.asarray(false)), np.asarray(true)
    below = np.searchsorted(ordered, true_N, "left") + np.searchsorted(ordered, true_N, "right")
    return float(below.mean() / (2 * len(ordered)))


def calibration_error(p_N: Array, labels_N: Array, weights_N: Array) -> float:
    """Expected calibration error over ten bins of equal width (Naeini et al. 2015), true and false at par."""
    weights_N = balanced(labels_N, weights_N)
    bins: NDArray[np.int64] = np.minimum((p_N * _BINS).astype(np.int64), _BINS - 1)
    gaps = weights_N * (p_N - labels_N)
    return float(sum(abs(gaps[bins == each].sum()) for each in range(_BINS)))


def share_kept(true: Array, false: Array, let_through: float = 0.1) -> tuple[float, float]:
    """(threshold that at most `let_through` of the false ones reach, share of the true ones that do)."""
    threshold = float(np.quantile(false, 1 - let_through, method="higher"))
    threshold = float(np.nextafter(threshold, 2.0))
    return threshold, float((np.asarray(true) >= threshold).mean())
