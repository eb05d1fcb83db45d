"""Scores of the weight gradients that training forms anyway: on the way through their GEMM, or once they are there.

On the way, each segment's share is dotted with V before it is added: no score is a difference of running totals, so
nothing cancels (see README.md). A gradient that is there already takes a pass over memory and no product.
"""

from itertools import pairwise
from typing import Sequence  # noqa: UP035 - the one that torch 2.6 reads in a signature of an op

import torch
from torch import Tensor

from synpro_kernels.common.arithmetic import precise_dtype
from synpro_kernels.ops.grad_dot.dispatch import FORMED, PREFIX
from synpro_kernels.ops.grad_dot.validate import check_direction, check_tokens, refuse_gradients


def grad_dot_prefix(
    x: Tensor,
    grad_out: Tensor,
    direction: Tensor,
    boundaries: Sequence[int] | Tensor,
    *,
    accumulator: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Accumulate the weight gradient of a linear layer segment by segment, and score each segment on the way.

    Segment i is the tokens [boundaries[i], boundaries[i+1]), G_i its share of the weight gradient. The GEMM is the one
    that training needs anyway; many directions cost a pass over G_i each, no further GEMM.

    Args:
        x: [T, I], the layer's input, fp16, bf16, fp32 or fp64. Rows in the order of the segments.
        grad_out: [T, O], the gradient of the layer's output, dtype and device of x.
        direction: V [O, I], or [K, O, I], dtype of x or fp32, on the device of x.
        boundaries: segments + 1 rising offsets from 0 to T; a repeated one makes an empty segment, which scores 0.
            Better on the host: a tensor on a GPU is waited for.
        accumulator: [O, I] fp32 (fp64 for fp64 inputs), contiguous, such as Megatron's `main_grad`; added to in place.
            None: a new one, from zero.

    Returns:
        (<G_i, V> as [segments] or [K, segments], fp32 or fp64; the accumulator).

    Raises:
        ValueError: naming the argument and what was expected; also where x, grad_out or direction requires grad while
            grad mode is on, since there is no backward pass.

    """
    _check(x, grad_out, direction, accumulator)
    # On the host: how the GEMM is cut depends on them, and torch.library takes a list of integers.
    offsets = boundaries.tolist() if isinstance(boundaries, Tensor) else list(boundaries)
    rising = all(a <= b for a, b in pairwise(offsets))
    if len(offsets) < 1 or offsets[0] != 0 or offsets[-1] != x.shape[0] or not rising:
        expected = f"offsets that rise from 0 to {x.shape[0]}"
        raise ValueError(f"boundaries: expected {expected}, got {_abbreviated(offsets)}")
    refuse_gradients(x=x, grad_out=grad_out, direction=direction)
    outputs, inputs = grad_out.shape[1], x.shape[1]
    if accumulator is None:
        accumulator = x.new_zeros(outputs, inputs, dtype=precise_dtype(x.dtype))
    scores_KS = _grad_dot_prefix(x, grad_out, direction.reshape(-1, outputs, inputs), offsets, accumulator)
    return scores_KS if direction.dim() == 3 else scores_KS[0], accumulator


def _check(x: Tensor, grad_out: Tensor, direction: Tensor, accumulator: Tensor | None) -> None:
    check_tokens("x", x)
    if x.dim() != 2:
        raise ValueError(f"x: expected [T, I], got {tuple(x.shape)}")
    check_tokens("grad_out", grad_out, like=x)
    outputs, inputs = grad_out.shape[1], x.shape[1]
    precise = precise_dtype(x.dtype)
    check_direction(direction, outputs, inputs, like=x, like_name="x")
    if accumulator is None:
        return
    # Contiguous: the kernels step through it by row, and a copy would leave the trainer's buffer as it was.
    if accumulator.shape != (outputs, inputs) or accumulator.dtype != precise or not accumulator.is_contiguous():
        expected = f"contiguous {precise} {(outputs, inputs)}"
        raise ValueError(f"accumulator: expected {expected}, got {accumulator.dtype} {tuple(accumulator.shape)}")
    if accumulator.device != x.device:
        raise ValueError(f"accumulator: expected device {x.device} like x, got {accumulator.device}")
    if accumulator.requires_grad:
        raise ValueError("accumulator: requires grad, but is written in place; pass accumulator.detach()")


def _abbreviated(offsets: list[int]) -> str:
    return str(offsets) if len(offsets) <= 8 else f"{str(offsets[:4])[:-1]}, ... {str(offsets[-2:])[1:]}"


# The accumulator is named as mutated: a compiler would otherwise move reads of it across the call.
@torch.library.custom_op("synpro::grad_dot_prefix", mutates_args={"accumulator_OI"})
def _grad_dot_prefix(
    x_TI: Tensor, grad_TO: Tensor, direction_KOI: Tensor, boundaries: Sequence[int], accumulator_OI: Tensor
) -> Tensor:
    return PREFIX.kernels(x_TI)(x_TI, grad_TO, direction_KOI, boundaries, accumulator_OI)


@_grad_dot_prefix.register_fake
def _(x_TI, grad_TO, direction_KOI, boundaries, accumulator_OI):
    return x_TI.new_empty(direction_KOI.shape[0], len(boundaries) - 1, dtype=precise_dtype(x_TI.dtype))


def formed_dot(gradient: Tensor, direction: Tensor) -> Tensor:
    """<G, V_k>: gradient [P, ...], direction [K, P, ...], any floating dtypes; fp64 [K].

    Multiplied in the wider of the two dtypes, in fp32 at least; summed in fp32 over short runs, or pairwise within a
    block, and in fp64 over those (a library's dot product runs through all of it in one fp32 sum, with ten times the
    error). Raises ValueError for shapes or devices that do not match.
    """
    if gradient.dim() == 0 or direction.shape[1:] != gradient.shape:
        raise ValueError(f"direction: expected [K, *{tuple(gradient.shape)}], got {tuple(direction.shape)}")
    if direction.device != gradient.device:
        raise ValueError(f"direction: is on {direction.device}, the gradient on {gradient.device}")
    return FORMED.kernels(gradient, direction)(gradient, direction)
