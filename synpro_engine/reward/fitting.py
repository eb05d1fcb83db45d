"""Fitting a head to labelled evidence."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from synpro_engine.reward.calibrating import least_cross_entropy
from synpro_engine.reward.head import Array, Head, scaled
from synpro_engine.reward.measures import balanced

_HIDDEN = 8
_FITS = 4
_DECAY = 6.0  # over the number of examples: few say little against what is likely beforehand
_STEPS = 300


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
    slope, offset = least_cross_entropy(head.logits(evidence_NF), labels_N, balanced(labels_N, weights_N))
    return replace(head, slope=slope, offset=offset).rounded()
