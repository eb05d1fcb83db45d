"""Inner products of all pairs of per-segment gradients, from token products: <G_i, G_j> = sum (x_t . x_s) (b_t . b_s).

No gradient is formed: cheaper while the tokens are fewer than some 2 I O / (I + O) (see README.md).
"""

import torch
from torch import Tensor

from synpro_kernels.common.arithmetic import precise_dtype
from synpro_kernels.ops.grad_dot.dispatch import PAIRS
from synpro_kernels.ops.grad_dot.validate import check_ids, check_tokens, refuse_gradients


def pairwise_grad_dot(x: Tensor, grad_out: Tensor, segment_ids: Tensor, *, segments: int) -> Tensor:
    """Inner products of the weight gradients of all pairs of segments of one linear layer; no gradient is formed.

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
