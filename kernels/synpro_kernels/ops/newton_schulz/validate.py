"""Argument checks of `orthogonalize`. Each raises ValueError naming the argument and what was expected."""

import torch
from torch import Tensor

from synpro_kernels.common.arithmetic import FLOATS


def check_matrices(matrices: Tensor, dtype: torch.dtype | None) -> None:
    """Floating [..., M, N] without gradient, and a floating dtype to multiply in."""
    if matrices.dim() < 2 or matrices.dtype not in FLOATS or 0 in matrices.shape[-2:]:
        found = f"{matrices.dtype} {tuple(matrices.shape)}"
        raise ValueError(f"matrices: expected floating [..., M >= 1, N >= 1], got {found}")
    if dtype is not None and dtype not in FLOATS:
        raise ValueError(f"dtype: expected one of {', '.join(map(str, FLOATS))}, got {dtype}")
    if matrices.requires_grad and torch.is_grad_enabled():
        raise ValueError(
            "matrices: requires grad, but this has no backward pass; pass matrices.detach(), use torch.no_grad(), or"
            " differentiate `orthogonalize_definition`"
        )


def check_numbers(steps: int, eps: float) -> None:
    """At least one step, and a norm to divide by."""
    if steps < 1:
        raise ValueError(f"steps: expected >= 1, got {steps}")
    if not eps > 0:
        raise ValueError(f"eps: expected > 0, got {eps}")


def check_shards(sharded_dim: int | None, reduces: bool) -> None:
    """The dimension and the reduction come together."""
    if sharded_dim not in (None, -1, -2):
        raise ValueError(f"sharded_dim: expected -2 (rows) or -1 (columns), got {sharded_dim}")
    if (sharded_dim is None) == reduces:
        there, missing = ("gram_reduce", "sharded_dim") if reduces else ("sharded_dim", "gram_reduce")
        raise ValueError(f"{missing}: expected with {there}, got None")
