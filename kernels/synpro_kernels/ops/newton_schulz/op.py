"""The public entry `orthogonalize`: checks, the iteration, and registration of its product with torch.library."""

from collections.abc import Callable

import torch
from torch import Tensor

from synpro_kernels.common.arithmetic import precise_dtype
from synpro_kernels.ops.newton_schulz.coefficients import Coefficients, polynomials
from synpro_kernels.ops.newton_schulz.dispatch import SYMMETRIC
from synpro_kernels.ops.newton_schulz.torch_backend import scaled_sum
from synpro_kernels.ops.newton_schulz.validate import check_matrices, check_numbers, check_shards

Reduce = Callable[[Tensor], object]
"""Adds up its argument over the shards, in place, as `lambda gram: dist.all_reduce(gram, group=group)`."""


def orthogonalize(
    matrices: Tensor,
    *,
    steps: int = 5,
    coefficients: Coefficients = "quintic",
    dtype: torch.dtype | None = None,
    eps: float = 1e-7,
    gram_reduce: Reduce | None = None,
    sharded_dim: int | None = None,
) -> Tensor:
    """Move the singular values of each matrix towards 1, by Newton and Schulz's iteration.

    With X of Frobenius norm 1 each step makes X <- a X + (b G + c G G) X of the Gram matrix G = X X^T: two symmetric
    products of the shorter side and a whole one. A matrix of zeros stays one.

    Args:
        matrices: [..., M, N], fp16, bf16, fp32 or fp64; each matrix by itself.
        steps: polynomials that are applied.
        coefficients: "quintic" (the same for each step), "polar_express" (each the best for what is left), or (a, b, c)
            of each step, of which the last is repeated.
        dtype: what products multiply and matrices are kept in between, the matrices' own where None; sums are fp32
            (fp64 for fp64), and so is the norm.
        eps: the norm is taken to be at least this.
        gram_reduce: where `matrices` are shards, adds up a tensor over them, in place: the Gram matrices of each step,
            [B, K, K] of the dimension that is whole, and once [B, 1, 1] squares of the norms. In fp32 at least.
        sharded_dim: the dimension that is cut, -2 or -1; with `gram_reduce`. Shards may differ in size.

    Returns:
        [..., M, N], fp32 (fp64 where dtype is).

    Raises:
        ValueError: naming the argument and what was expected; also where matrices require grad while grad mode is on.

    """
    check_matrices(matrices, dtype)
    check_numbers(steps, eps)
    check_shards(sharded_dim, gram_reduce is not None)
    schedule = polynomials(coefficients, steps)
    rows, columns = matrices.shape[-2:]
    # The Gram matrix is of the shorter side, or of the whole one: a sum over the cut one is a sum over shards.
    tall = rows > columns if sharded_dim is None else sharded_dim == -2
    given_BMK = matrices.reshape(-1, rows, columns)
    x_BMK = _of_norm_one(given_BMK.mT if tall else given_BMK, dtype or matrices.dtype, eps, gram_reduce)
    for a, b, c in schedule:
        gram_BMM = _gram(x_BMK, gram_reduce)
        x_BMK = scaled_sum(x_BMK, _symmetric_product(gram_BMM, gram_BMM, c, b, False), a)
    found = (x_BMK.mT if tall else x_BMK).to(precise_dtype(x_BMK.dtype))
    return found.reshape(matrices.shape)


def _of_norm_one(x_BMK: Tensor, dtype: torch.dtype, eps: float, reduce: Reduce | None) -> Tensor:
    """Each matrix over its Frobenius norm, contiguous, in `dtype`; the norm in fp32 at least, of all shards."""
    wide = x_BMK.to(torch.promote_types(precise_dtype(x_BMK.dtype), precise_dtype(dtype)))
    squares_B = wide.square().sum((-2, -1), keepdim=True)
    if reduce is not None:
        reduce(squares_B)
    return (wide / squares_B.sqrt().clamp(min=eps)).to(dtype).contiguous()


def _gram(x_BMK: Tensor, reduce: Reduce | None) -> Tensor:
    gram_BMM = _symmetric_product(x_BMK, None, 1.0, 0.0, reduce is not None)
    if reduce is None:
        return gram_BMM
    reduce(gram_BMM)
    return gram_BMM.to(x_BMK.dtype)


@torch.library.custom_op("synpro::symmetric_product", mutates_args=())
def _symmetric_product(left_BMK: Tensor, addend_BMM: Tensor | None, alpha: float, beta: float, wide: bool) -> Tensor:
    return SYMMETRIC.kernels(left_BMK)(left_BMK, addend_BMM, alpha, beta, wide)


@_symmetric_product.register_fake
def _(left_BMK, addend_BMM, alpha, beta, wide):
    batch, rows, _ = left_BMK.shape
    return left_BMK.new_empty(batch, rows, rows, dtype=precise_dtype(left_BMK.dtype) if wide else left_BMK.dtype)
