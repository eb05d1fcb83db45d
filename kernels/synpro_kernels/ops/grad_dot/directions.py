"""Cheaper forms of a direction V [..., O, I]: low rank, and fp8 with one scale a row. Both say what they lost.

Each carries `relative_error` = ||V - V'||_F / ||V||_F, measured when it was made, one value a direction. By
Cauchy-Schwarz a score is off by at most relative_error * ||V||_F * ||G_i||_F, G_i being the segment's gradient.
"""

import torch
from torch import Tensor

from synpro_kernels.common.arithmetic import precise
from synpro_kernels.ops.grad_dot.types import Fp8Direction, LowRankDirection

_FP8 = torch.float8_e4m3fn
_FP8_MAX = 448.0  # of e4m3, which has three bits of mantissa where e5m2 has two; the row's scale makes up for its range
_OVERSAMPLING = 8  # columns beyond the rank; Halko et al. advise 5 to 10
_SUBSPACE_SEED = 20


def low_rank(direction: Tensor, rank: int, *, iterations: int = 2) -> LowRankDirection:
    """Return the best rank-`rank` form of each direction, near enough, in its own dtype.

    Randomised subspace iteration (Halko, Martinsson and Tropp 2011, algorithm 4.4) with a fixed seed, so it repeats and
    leaves the global generator alone; each iteration squares once more the ratio by which the discarded values leak in.

    Args:
        direction: [..., O, I], floating, finite.
        rank: 1 to min(O, I).
        iterations: >= 0.

    Raises:
        ValueError: naming the argument.

    """
    _check_dense(direction)
    most = min(direction.shape[-2:])
    if not 1 <= rank <= most:
        raise ValueError(f"rank: expected 1 to {most} for direction {tuple(direction.shape)}, got {rank}")
    if iterations < 0:
        raise ValueError(f"iterations: expected >= 0, got {iterations}")
    # fp32 also for halves: neither QR nor SVD is implemented in half precision.
    exact = precise(direction)
    generator = torch.Generator().manual_seed(_SUBSPACE_SEED)
    # Drawn on the CPU: CUDA's generator gives other numbers for the same seed, and the device would show in the result.
    probes = torch.randn(exact.shape[-1], min(most, rank + _OVERSAMPLING), generator=generator, device="cpu")
    # The same probes serve a whole stack of directions: they need only be independent of each V.
    basis = torch.linalg.qr(exact @ probes.to(exact)).Q
    # Orthonormal again after each half step: rounding would else pull all columns towards the leading singular vectors.
    for _ in range(iterations):
        basis = torch.linalg.qr(exact.mT @ basis).Q
        basis = torch.linalg.qr(exact @ basis).Q
    # Of [rank + 8, I], not of [O, I]: the cost of the exact SVD is what the subspace saves.
    u, s, vh = torch.linalg.svd(basis.mT @ exact, full_matrices=False)
    # sqrt(s) on either side: neither factor leaves the range of half precision before the other.
    root = s[..., :rank].sqrt()
    left = ((basis @ u[..., :rank]) * root[..., None, :]).to(direction.dtype)
    right = (root[..., :, None] * vh[..., :rank, :]).to(direction.dtype)
    # Of the factors as stored: in bf16 their rounding is a part of what is lost.
    error = _relative_error(exact, left.to(exact) @ right.to(exact))
    return LowRankDirection(left=left, right=right, relative_error=error)


def to_fp8(direction: Tensor) -> Fp8Direction:
    """Store each direction in e4m3 with a power-of-two scale a row: at most 2^-4 relative in entries that stay normal.

    Entries below about 3e-5 of their row's maximum become subnormal and then 0.

    Args:
        direction: [..., O, I], floating, finite.

    Raises:
        ValueError: naming the argument.

    """
    _check_dense(direction)
    # fp32 is enough for what becomes 8 bits, fp64 directions included.
    exact = direction.float()
    _, exponent = torch.frexp(exact.abs().amax(-1) / _FP8_MAX)
    scale = torch.ldexp(torch.ones_like(exact[..., 0]), exponent)  # row maximum / scale is in (224, 448]
    # Division by a power of two is exact, so each entry is rounded once.
    values = (exact / scale[..., None]).to(_FP8)
    error = _relative_error(exact, values.float() * scale[..., None])
    return Fp8Direction(values=values, scale=scale, relative_error=error)


def _check_dense(direction: Tensor) -> None:
    if direction.dim() < 2 or not direction.is_floating_point() or direction.numel() == 0:
        raise ValueError(f"direction: expected floating [..., O, I], got {direction.dtype} {tuple(direction.shape)}")
    if not bool(torch.isfinite(direction).all()):
        raise ValueError("direction: expected finite entries, got NaN or infinity")


def _relative_error(wanted: Tensor, stored: Tensor) -> Tensor:
    size = torch.linalg.matrix_norm(wanted)
    lost = torch.linalg.matrix_norm(wanted - stored)
    # A direction of zeros loses nothing; 0 / 0 would say NaN.
    return torch.where(size > 0, lost / size, 0.0).float()
