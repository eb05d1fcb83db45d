"""The segment sum in PyTorch, in fp64: sequential on the CPU, by membership elsewhere, where index_add_ is atomic.

Shapes: T tokens, K directions, S segments.
"""

import torch
from torch import Tensor

from synpro_kernels.common.arithmetic import precise_dtype
from synpro_kernels.ops.grad_dot.validate import check_id_range, nan_where_out_of_range

# Entries of the membership matrix that exist at a time: 128 MiB of it in fp64.
_MEMBER_ENTRIES = 1 << 24


def segment_sum(values_KT: Tensor, ids_T: Tensor, segments: int) -> Tensor:
    """Sum [K, T] by id to [K, S]. An id out of range raises ValueError on the CPU and makes all NaN elsewhere."""
    out_dtype = precise_dtype(values_KT.dtype)
    if values_KT.device.type == "cpu":
        return _sum_in_order(values_KT, ids_T, segments).to(out_dtype)
    sums_KS = _sum_by_membership(values_KT, ids_T, segments).to(out_dtype)
    return nan_where_out_of_range(sums_KS, ids_T, segments)


def _sum_in_order(values_KT: Tensor, ids_T: Tensor, segments: int) -> Tensor:
    """One pass in token order: index_add_ of one dimension is sequential on the CPU."""
    check_id_range(ids_T, segments)
    directions = values_KT.shape[0]
    slots = segments + 1  # slot 0 takes the tokens that belong to none, and is dropped
    index_KT = (ids_T.long() + 1) + slots * torch.arange(directions)[:, None]
    sums = torch.zeros(directions * slots, dtype=torch.float64)
    sums.index_add_(0, index_KT.reshape(-1), values_KT.double().reshape(-1))
    return sums.view(directions, slots)[:, 1:].contiguous()


def _sum_by_membership(values_KT: Tensor, ids_T: Tensor, segments: int) -> Tensor:
    """Blocks of segments against all tokens, masked rather than multiplied: what belongs to none may be NaN."""
    blocks = []
    size = max(1, _MEMBER_ENTRIES // max(1, values_KT.numel()))
    for start in range(0, segments, size):
        wanted_S = torch.arange(start, min(start + size, segments), device=ids_T.device)
        member_ST = ids_T == wanted_S[:, None]
        blocks.append(torch.where(member_ST, values_KT.double()[:, None], 0.0).sum(-1))
    return torch.cat(blocks, -1) if blocks else values_KT.new_zeros(values_KT.shape[0], 0, dtype=torch.float64)
