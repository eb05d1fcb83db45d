"""Inner products of all pairs of per-segment gradients, from token products: <G_i, G_j> = sum (x_t . x_s) (b_t . b_s).

Knows one linear layer. Works on tiles of tokens x tokens, of which only the upper triangle is computed.
"""

import torch
from torch import Tensor

from synpro_kernels.common.arithmetic import mm, precise_dtype
from synpro_kernels.ops.grad_dot.implementation import use_triton
from synpro_kernels.ops.grad_dot.segments import check_id_range
from synpro_kernels.ops.grad_dot.validate import check_ids, check_tokens, refuse_gradients

_TILE = 1024


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
    if use_triton(x_TI):
        from synpro_kernels.ops.grad_dot.triton_pairs import pairwise_grad_dot_triton

        return pairwise_grad_dot_triton(x_TI, grad_TO, ids_T, segments)
    return _by_tiles(x_TI, grad_TO, ids_T, segments).to(precise_dtype(x_TI.dtype))


@_pairwise_grad_dot.register_fake
def _(x_TI, grad_TO, ids_T, segments):
    return x_TI.new_empty(segments, segments, dtype=precise_dtype(x_TI.dtype))


def _by_tiles(x_TI: Tensor, grad_TO: Tensor, ids_T: Tensor, segments: int) -> Tensor:
    """Tokens in order of their segment, so that a tile meets few segments, which are neighbours."""
    check_id_range(ids_T, segments)
    order_T = torch.argsort(ids_T, stable=True)
    order_T = order_T[ids_T[order_T] >= 0]
    starts = range(0, order_T.shape[0], _TILE)
    blocks = [_Block(x_TI, grad_TO, ids_T, order_T[start : start + _TILE]) for start in starts]
    sums_SS = x_TI.new_zeros(segments, segments, dtype=torch.float64)
    for at, one in enumerate(blocks):
        for other in blocks[at:]:
            part = one.products(other)
            sums_SS[one.segments, other.segments] += part
            if one is not other:
                sums_SS[other.segments, one.segments] += part.t()
    upper_SS = sums_SS.triu()  # a tile of a block with itself need not be symmetric in its last bits
    return upper_SS + upper_SS.triu(1).t()


class _Block:
    """Some tokens in order of their segment, and which segment each belongs to."""

    def __init__(self, x_TI: Tensor, grad_TO: Tensor, ids_T: Tensor, order_C: Tensor) -> None:
        ids_C = ids_T[order_C].long()
        self._x_CI, self._grad_CO = x_TI[order_C], grad_TO[order_C]
        self.segments = slice(int(ids_C[0]), int(ids_C[-1]) + 1)
        self._slot_C = ids_C - ids_C[0]

    def products(self, other: "_Block") -> Tensor:
        """[own segments, other's segments], fp64: the tile of token products, summed by segment on either side."""
        tile_CD = mm(self._x_CI, other._x_CI.t()).mul_(mm(self._grad_CO, other._grad_CO.t()))
        sums_SD = self._sum_rows(tile_CD.double())
        return other._sum_rows(sums_SD.t().contiguous()).t()

    def _sum_rows(self, rows_CN: Tensor) -> Tensor:
        sum_rows = _add_in_order if rows_CN.device.type == "cpu" else _reduce_runs
        return sum_rows(rows_CN, self._slot_C, self.segments.stop - self.segments.start)


def _add_in_order(rows_CN: Tensor, slot_C: Tensor, count: int) -> Tensor:
    """Sum rows by slot (rising) into [count, N], adding nothing of one slot to another, as 0 * NaN would."""
    return rows_CN.new_zeros(count, rows_CN.shape[1]).index_add_(0, slot_C, rows_CN)


def _reduce_runs(rows_CN: Tensor, slot_C: Tensor, count: int) -> Tensor:
    """The same where index_add_ is atomic, in no fixed order."""
    lengths = torch.searchsorted(slot_C, torch.arange(count + 1, device=slot_C.device)).diff()
    return torch.segment_reduce(rows_CN, "sum", lengths=lengths, axis=0, initial=0.0)
