"""The public entries of `grad_dot` and `pairwise_grad_dot`: checks, and registration with torch.library."""

from typing import Literal, overload

import torch
from torch import Tensor

from synpro_kernels.common.arithmetic import precise_dtype
from synpro_kernels.ops.grad_dot.dispatch import GRAD_DOT, PAIRS
from synpro_kernels.ops.grad_dot.segments import by_segment
from synpro_kernels.ops.grad_dot.torch_backend import low_rank_tokens
from synpro_kernels.ops.grad_dot.types import Direction, Fp8Direction, GradDots, LowRankDirection
from synpro_kernels.ops.grad_dot.validate import (
    check_device,
    check_ids,
    check_same,
    check_shape,
    check_tokens,
    refuse_gradients,
)


@overload
def grad_dot(
    x: Tensor,
    grad_out: Tensor,
    direction: Direction,
    segment_ids: Tensor,
    *,
    segments: int,
    per_token: Literal[False] = False,
) -> Tensor: ...
@overload
def grad_dot(
    x: Tensor, grad_out: Tensor, direction: Direction, segment_ids: Tensor, *, segments: int, per_token: Literal[True]
) -> GradDots: ...
def grad_dot(
    x: Tensor,
    grad_out: Tensor,
    direction: Direction,
    segment_ids: Tensor,
    *,
    segments: int,
    per_token: bool = False,
) -> Tensor | GradDots:
    """Inner products of each segment's weight gradient with V: score_i = sum over t in i of grad_out_t . (V x_t).

    For a linear layer y = x W^T, segment i's weight gradient is G_i = sum_t grad_out_t x_t^T, and score_i = <G_i, V>.
    Neither G_i nor the product V x [T, O] is stored. A score does not depend on what else is in the batch.

    Args:
        x: [..., I], the layer's input; fp16, bf16, fp32 or fp64. Multiplied as it is, accumulated in fp32 (fp64).
        grad_out: [..., O], the gradient of the layer's output, dtype and device of x.
        direction: V [O, I], or [K, O, I] for K directions at once, dtype and device of x; or a `LowRankDirection`
            (factors of x's dtype) or `Fp8Direction` of the same shapes.
        segment_ids: [...], int32 or int64 in [-1, segments), in any order; -1 belongs to none, and its row may be NaN.
        segments: the number of segments.
        per_token: also return each token's share.

    Returns:
        [segments] or [K, segments], fp32 (fp64 for fp64 inputs); a segment without tokens scores 0. With per_token a
        `GradDots`.

    Raises:
        ValueError: naming the argument and what was expected; also for a tensor that requires grad while grad mode is
            on, since there is no backward pass. Off the CPU an id out of range gives NaN instead: the host need
            not wait.

    """
    check_tokens("x", x)
    check_tokens("grad_out", grad_out, like=x)
    check_ids(segment_ids, segments, x.shape[:-1], x.device)
    x_TI, grad_TO = x.reshape(-1, x.shape[-1]), grad_out.reshape(-1, grad_out.shape[-1])
    dots_KT, several = _token_dots(x_TI, grad_TO, direction)
    return by_segment(dots_KT, segment_ids, segments, several=several, per_token=per_token)


def _token_dots(x_TI: Tensor, grad_TO: Tensor, direction: Direction) -> tuple[Tensor, bool]:
    """(b_t . (V x_t) as [K, T], whether there was a dimension of directions), after checking the direction."""
    if isinstance(direction, LowRankDirection):
        return _low_rank_dots(x_TI, grad_TO, direction.left, direction.right)
    outputs, inputs = grad_TO.shape[1], x_TI.shape[1]
    values, scale = (direction.values, direction.scale) if isinstance(direction, Fp8Direction) else (direction, None)
    check_shape("direction", values, outputs, inputs)
    refuse_gradients(x=x_TI, grad_out=grad_TO, direction=values)
    # A dense direction is an operand of the tensor cores, which multiply equal types only, hence the dtype of x.
    if scale is None:
        check_same("direction", values, x_TI, "x")
        return _grad_dot_tokens(x_TI, grad_TO, values.reshape(-1, outputs, inputs), None), values.dim() == 3
    if values.dtype != torch.float8_e4m3fn:
        raise ValueError(f"direction.values: expected float8_e4m3fn, got {values.dtype}")
    if scale.shape != values.shape[:-1] or scale.dtype != torch.float32:
        raise ValueError(f"direction.scale: expected fp32 {tuple(values.shape[:-1])}, got {tuple(scale.shape)}")
    check_device("direction.values", values, x_TI, "x")
    check_device("direction.scale", scale, x_TI, "x")
    stacked = values.reshape(-1, outputs, inputs), scale.reshape(-1, outputs)
    return _grad_dot_tokens(x_TI, grad_TO, *stacked), values.dim() == 3


def _low_rank_dots(x_TI: Tensor, grad_TO: Tensor, left: Tensor, right: Tensor) -> tuple[Tensor, bool]:
    rank = left.shape[-1]
    check_shape("direction.left", left, grad_TO.shape[1], rank)
    check_shape("direction.right", right, rank, x_TI.shape[1])
    if left.shape[:-2] != right.shape[:-2]:
        raise ValueError(f"direction.right: expected {left.shape[:-2]} directions like left, got {right.shape[:-2]}")
    check_same("direction.left", left, x_TI, "x")
    check_same("direction.right", right, x_TI, "x")
    refuse_gradients(x=x_TI, grad_out=grad_TO, left=left, right=right)
    factors = [factor.reshape(-1, *factor.shape[-2:]) for factor in (left, right)]
    return low_rank_tokens(x_TI, grad_TO, *factors), left.dim() == 3


@torch.library.custom_op("synpro::grad_dot_tokens", mutates_args=())
def _grad_dot_tokens(x_TI: Tensor, grad_TO: Tensor, direction_KOI: Tensor, scale_KO: Tensor | None) -> Tensor:
    over_inputs = contract_over_inputs(*direction_KOI.shape[1:])
    return GRAD_DOT.kernels(x_TI)(x_TI, grad_TO, direction_KOI, scale_KO, over_inputs)


def contract_over_inputs(outputs: int, inputs: int) -> bool:
    """Whether to compute V x (then dot with b) rather than b V (then dot with x): the shorter product row.

    Both orders take 2 T O I operations. With the wider side contracted the product, which meets the other operand
    entry by entry, has the fewer entries, and the multiplying loop runs longer between two such epilogues.
    """
    return inputs >= outputs


@_grad_dot_tokens.register_fake
def _(x_TI, grad_TO, direction_KOI, scale_KO):
    # Contiguous whatever the inputs' strides, as every backend returns it: compilers plan memory by this answer.
    return x_TI.new_empty(direction_KOI.shape[0], x_TI.shape[0], dtype=precise_dtype(x_TI.dtype))


def pairwise_grad_dot(x: Tensor, grad_out: Tensor, segment_ids: Tensor, *, segments: int) -> Tensor:
    """Inner products of the weight gradients of all pairs of segments of one linear layer.

    From token products, <G_i, G_j> = sum (x_t . x_s) (b_t . b_s): cheaper than forming gradients while the tokens are
    fewer than some 2 I O / (I + O) (see README.md). With more a CPU forms them, a block of output rows at a time.

    Args:
        x: [..., I], the layer's input; fp16, bf16, fp32 or fp64. Multiplied as it is, accumulated in fp32 (fp64).
        grad_out: [..., O], the gradient of the layer's output, dtype and device of x.
        segment_ids: [...], int32 or int64 in [-1, segments), in any order; -1 belongs to none, and its row may be NaN.
        segments: the number of segments.

    Returns:
        [segments, segments], symmetric to the bit, fp32 (fp64 for fp64 inputs).

    Raises:
        ValueError: naming the argument and what was expected; also for a tensor that requires grad while grad mode is
            on, since there is no backward pass. Off the CPU an id out of range may give NaN instead: the host need
            not wait.

    """
    check_tokens("x", x)
    check_tokens("grad_out", grad_out, like=x)
    check_ids(segment_ids, segments, x.shape[:-1], x.device)
    refuse_gradients(x=x, grad_out=grad_out)
    rows = x.reshape(-1, x.shape[-1]), grad_out.reshape(-1, grad_out.shape[-1])
    return _pairwise_grad_dot(*rows, segment_ids.reshape(-1), segments)


@torch.library.custom_op("synpro::pairwise_grad_dot", mutates_args=())
def _pairwise_grad_dot(x_TI: Tensor, grad_TO: Tensor, ids_T: Tensor, segments: int) -> Tensor:
    return PAIRS.kernels(x_TI)(x_TI, grad_TO, ids_T, segments)


@_pairwise_grad_dot.register_fake
def _(x_TI, grad_TO, ids_T, segments):
    return x_TI.new_empty(segments, segments, dtype=precise_dtype(x_TI.dtype))
