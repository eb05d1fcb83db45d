"""The score of a gradient that was formed already, as training forms it: a pass over memory, no product."""

from torch import Tensor

from synpro_kernels.ops.grad_dot.dispatch import FORMED


def formed_dot(gradient: Tensor, direction: Tensor) -> Tensor:
    """<G, V_k>: gradient [P, ...], direction [K, P, ...], any floating dtypes; fp64 [K].

    Multiplied in the wider of the two dtypes, in fp32 at least; summed in fp32 over short runs, or pairwise within a
    block, and in fp64 over those (a library's dot product runs through all of it in one fp32 sum, with ten times the
    error). Raises ValueError for shapes that do not match.
    """
    if gradient.dim() == 0 or direction.shape[1:] != gradient.shape:
        raise ValueError(f"direction: expected [K, *{tuple(gradient.shape)}], got {tuple(direction.shape)}")
    return FORMED.kernels(gradient, direction)(gradient, direction)
