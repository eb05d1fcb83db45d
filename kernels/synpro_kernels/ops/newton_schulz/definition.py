"""The definitions: the plain iteration, and what it tends to, by a singular value decomposition.

Arithmetic is fp32, or fp64 where the inputs are fp64. No validation. Both may be differentiated.
Shapes: [..., M, N], a stack of matrices.
"""

import torch
from torch import Tensor

from synpro_kernels.common.arithmetic import precise
from synpro_kernels.ops.newton_schulz.coefficients import Coefficients, polynomials


def orthogonalize_definition(
    matrices: Tensor, *, steps: int = 5, coefficients: Coefficients = "quintic", eps: float = 1e-7
) -> Tensor:
    """X / max(|X|, eps), then X <- a X + b X X^T X + c (X X^T)^2 X for each step."""
    x = precise(matrices)
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=eps)
    for a, b, c in polynomials(coefficients, steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x


def polar_factor_definition(matrices: Tensor) -> Tensor:
    """U V^T of X = U S V^T: the nearest matrix whose rows, or columns, are orthonormal."""
    left, _, right = torch.linalg.svd(precise(matrices), full_matrices=False)
    return left @ right
