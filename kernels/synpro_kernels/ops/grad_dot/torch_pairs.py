"""<G_i, G_j> in PyTorch: tiles of tokens x tokens, of which only the upper triangle is computed.

Shapes: T tokens, I inputs, O outputs, S segments; C and D tokens of two blocks, whose tile is [C, D].
"""

import torch
from torch import Tensor

from synpro_kernels.common.arithmetic import mm, precise_dtype
from synpro_kernels.ops.grad_dot.validate import check_id_range

_TILE = 1024  # tokens: a tile is 4 MiB in fp32, 8 MiB in fp64


def pairwise_grad_dot(x_TI: Tensor, grad_TO: Tensor, ids_T: Tensor, segments: int) -> Tensor:
    """Return <G_i, G_j>: [S, S], fp32 (fp64). Raises ValueError for an id outside [-1, segments)."""
    check_id_range(ids_T, segments)
    # Tokens in order of their segment, so that a tile meets few segments, which are neighbours.
    order_T = torch.argsort(ids_T, stable=True)
    order_T = order_T[ids_T[order_T] >= 0]
    starts = range(0, order_T.shape[0], _TILE)
    blocks = [_Block(x_TI, grad_TO, ids_T, order_T[start : start + _TILE]) for start in starts]
    sums_SS = x_TI.new_zeros(segments, segments, dtype=torch.float64)
    for at, one in enumerate(blocks):
        for other in blocks[at:]:
            part = one.products(other)
            sums_SS[one.segments, other.segments] += part
            if one is not other:  # a segment that lies in both blocks meets itself in either order
                sums_SS[other.segments, one.segments] += part.t()
    upper_SS = sums_SS.triu()  # a tile of a block with itself need not be symmetric in its last bits
    return (upper_SS + upper_SS.triu(1).t()).to(precise_dtype(x_TI.dtype))


class _Block:
    """Some tokens in order of their segment, and which segment each belongs to."""

    def __init__(self, x_TI: Tensor, grad_TO: Tensor, ids_T: Tensor, order_C: Tensor) -> None:
        ids_C = ids_T[order_C].long()
        self._x_CI, self._grad_CO = x_TI[order_C], grad_TO[order_C]
        self.segments = slice(int(ids_C[0]), int(ids_C[-1]) + 1)
        self._slot_C = ids_C - ids_C[0]

    def products(self, other: "_Block") -> Tensor:
        """[segments here, segments there], fp64: the tile of token products, summed by segment on either side."""
        tile_CD = mm(self._x_CI, other._x_CI.t()).mul_(mm(self._grad_CO, other._grad_CO.t()))
        # fp64 from here on, as in `segments`: shares that cancel keep their digits.
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
