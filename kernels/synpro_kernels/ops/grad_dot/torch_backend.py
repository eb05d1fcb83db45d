"""The ops in PyTorch, on any device and for every dtype: in blocks, so that no product exists whole.

Token dots [T, O] are made block of tokens by block of the direction, pairs in tiles of tokens x tokens, the scoring
weight-gradient GEMM by output rows of each segment, and what is formed already in runs of memory.

Shapes: T tokens, I inputs, O outputs, K directions, S segments; of a block: C (and D) tokens, N columns or output rows;
R the contracted side.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from synpro_kernels.common.arithmetic import mm, operand, precise_dtype
from synpro_kernels.common.pieces import block_bytes, pieces
from synpro_kernels.ops.grad_dot.validate import check_id_range, nan_where_out_of_range

_PAIR_TILE = {"cpu": 256, "cuda": 1024}  # tokens: on a CPU a tile stays in its cache
_MEMBER_ENTRIES = 1 << 24  # of the membership matrix that exist at a time: 128 MiB of it in fp64
_FORMED_BLOCK = {"cpu": 1 << 18, "cuda": 1 << 24}  # entries multiplied at once: on a CPU, what its cache holds


def grad_dot_tokens(
    x_TI: Tensor, grad_TO: Tensor, direction_KOI: Tensor, scale_KO: Tensor | None, over_inputs: bool
) -> Tensor:
    """Return b_t . (V x_t) for every direction and token: [K, T]."""
    # Which side is contracted is the caller's choice (`contract_over_inputs`); from here on both read alike.
    rows_TR, other_TN = (x_TI, grad_TO) if over_inputs else (grad_TO, x_TI)
    tokens, width = other_TN.shape
    dots_KT = x_TI.new_zeros(direction_KOI.shape[0], tokens, dtype=precise_dtype(x_TI.dtype))
    # On a CPU a block is 2048 tokens x 1024 columns in fp32: 8 MiB, which `mul_` and `sum` find in the cache.
    columns = min(width, 1024 if x_TI.device.type == "cpu" else 8192)
    for block in pieces(tokens, block_bytes(x_TI) // (columns * dots_KT.element_size())):
        rows_CR, other_CN = (operand(t[block]) for t in (rows_TR, other_TN))  # widened once for all directions
        for k, direction_OI in enumerate(direction_KOI):
            scale_O = None if scale_KO is None else scale_KO[k]
            for span in pieces(width, columns):
                v_RN = _direction_block(direction_OI, scale_O, span, over_inputs, x_TI.dtype)
                # Spans of columns are added in fp32 in a fixed order: few terms, none of which another token enters.
                dots_KT[k, block] += mm(rows_CR, v_RN).mul_(other_CN[:, span]).sum(-1)
    return dots_KT


def low_rank_tokens(x_TI: Tensor, grad_TO: Tensor, left_KOr: Tensor, right_KrI: Tensor) -> Tensor:
    """Return (left^T b_t) . (right x_t) for every direction and token: [K, T]."""
    tokens, width = x_TI.shape[0], max(x_TI.shape[1], grad_TO.shape[1])
    dots_KT = x_TI.new_zeros(left_KOr.shape[0], tokens, dtype=precise_dtype(x_TI.dtype))
    # Widened once for all blocks: r (I + O) entries a direction are small beside a block of tokens.
    factors = [(operand(left), operand(right).t()) for left, right in zip(left_KOr, right_KrI, strict=True)]
    for block in pieces(tokens, block_bytes(x_TI) // (width * dots_KT.element_size())):
        x_CI, grad_CO = operand(x_TI[block]), operand(grad_TO[block])
        for k, (left_Or, right_Ir) in enumerate(factors):
            dots_KT[k, block] = mm(x_CI, right_Ir).mul_(mm(grad_CO, left_Or)).sum(-1)
    return dots_KT


def _direction_block(
    direction_OI: Tensor, scale_O: Tensor | None, span: slice, over_inputs: bool, dtype: torch.dtype
) -> Tensor:
    """[R, N]: the block of V^T (over inputs) or of V whose columns are `span`, decoded where it is stored in fp8."""
    block = direction_OI[span] if over_inputs else direction_OI[:, span]
    if scale_O is not None:  # block by block: a direction decoded whole would take back what fp8 saves
        block = block.float() * (scale_O[span] if over_inputs else scale_O)[:, None]
        block = block.to(dtype)
    return operand(block.t() if over_inputs else block)


def pairwise_grad_dot(x_TI: Tensor, grad_TO: Tensor, ids_T: Tensor, segments: int) -> Tensor:
    """Return <G_i, G_j>: [S, S], fp32 (fp64). Raises ValueError for an id outside [-1, segments)."""
    check_id_range(ids_T, segments)
    # Tokens in order of their segment, so that a tile meets few segments, which are neighbours.
    order_T = torch.argsort(ids_T, stable=True)
    order_T = order_T[ids_T[order_T] >= 0]
    if _forming_is_cheaper(x_TI, grad_TO, ids_T, order_T):
        return _pairs_of_formed(x_TI, grad_TO, ids_T, order_T, segments)
    tile = _PAIR_TILE.get(x_TI.device.type, _PAIR_TILE["cuda"])
    blocks = [_PairBlock(x_TI, grad_TO, ids_T, order_T[tokens]) for tokens in pieces(order_T.shape[0], tile)]
    # [S, S] in fp64 until all tiles are in: a pair of long segments is the sum of many tiles.
    sums_SS = x_TI.new_zeros(segments, segments, dtype=torch.float64)
    for at, one in enumerate(blocks):
        for other in blocks[at:]:
            part = one.products(other)
            sums_SS[one.segments, other.segments] += part
            if one is not other:  # a segment that lies in both blocks meets itself in either order
                sums_SS[other.segments, one.segments] += part.t()
    return _symmetric(sums_SS).to(precise_dtype(x_TI.dtype))


def _symmetric(sums_SS: Tensor) -> Tensor:
    """The upper half mirrored: a product of rows with themselves need not be symmetric in its last bits."""
    upper_SS = sums_SS.triu()
    return upper_SS + upper_SS.triu(1).t()


def _forming_is_cheaper(x_TI: Tensor, grad_TO: Tensor, ids_T: Tensor, order_T: Tensor) -> bool:
    """Whether 2 T I O + 2 S^2 I O operations are fewer than those of the tiles, T^2 (I + O) with half a tile a block.

    On a CPU alone: elsewhere the host would wait to learn where segments end.
    """
    if x_TI.device.type != "cpu":
        return False
    tokens, inputs, outputs = order_T.shape[0], x_TI.shape[1], grad_TO.shape[1]
    there = torch.unique_consecutive(ids_T[order_T]).shape[0]
    by_tiles = tokens * (tokens + min(tokens, _PAIR_TILE["cpu"])) * (inputs + outputs)
    return 2 * inputs * outputs * (tokens + there**2) < by_tiles


def _pairs_of_formed(x_TI: Tensor, grad_TO: Tensor, ids_T: Tensor, order_T: Tensor, segments: int) -> Tensor:
    """<G_i, G_j> of the gradients themselves, which exist as a block of output rows."""
    there_S, counts_S = torch.unique_consecutive(ids_T[order_T], return_counts=True)
    x_TI, grad_TO = operand(x_TI[order_T]), operand(grad_TO[order_T])
    spans = list(pairwise([0, *counts_S.cumsum(0).tolist()]))
    sums_SS = x_TI.new_zeros(len(spans), len(spans), dtype=torch.float64)
    # A row's gradients of all segments, and its products of their pairs, which are more where segments are many.
    row_bytes = len(spans) * (x_TI.shape[1] + len(spans)) * x_TI.element_size()
    for rows in pieces(grad_TO.shape[1], block_bytes(x_TI) // row_bytes):
        formed_SNI = torch.stack([mm(grad_TO[start:end, rows].t(), x_TI[start:end]) for start, end in spans])
        # Row by row: sums over all I O products in fp32 would lose what those over I keep.
        formed_NSI = formed_SNI.transpose(0, 1)
        sums_SS += torch.bmm(formed_NSI, formed_NSI.mT).sum(0, dtype=torch.float64)
    pairs_SS = sums_SS.new_zeros(segments, segments)
    pairs_SS[there_S[:, None], there_S] = _symmetric(sums_SS)
    return pairs_SS.to(precise_dtype(x_TI.dtype))


class _PairBlock:
    """Some tokens in order of their segment, and which segment each belongs to."""

    def __init__(self, x_TI: Tensor, grad_TO: Tensor, ids_T: Tensor, order_C: Tensor) -> None:
        ids_C = ids_T[order_C].long()
        self._x_CI, self._grad_CO = x_TI[order_C], grad_TO[order_C]
        self.segments = slice(int(ids_C[0]), int(ids_C[-1]) + 1)
        self._slot_C = ids_C - ids_C[0]

    def products(self, other: "_PairBlock") -> Tensor:
        """[segments here, segments there], fp64: the tile of token products, summed by segment on either side."""
        tile_CD = mm(self._x_CI, other._x_CI.t()).mul_(mm(self._grad_CO, other._grad_CO.t()))
        # fp64 from here on, as in `segments`: shares that cancel keep their digits.
        # Both sums run over rows, hence the transpose: the other block's tokens become its rows.
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
    # Slots rise, so each segment is one run of rows, which is all that segment_reduce can add up.
    lengths = torch.searchsorted(slot_C, torch.arange(count + 1, device=slot_C.device)).diff()
    return torch.segment_reduce(rows_CN, "sum", lengths=lengths, axis=0, initial=0.0)


def grad_dot_prefix(
    x_TI: Tensor, grad_TO: Tensor, direction_KOI: Tensor, boundaries: Sequence[int], accumulator_OI: Tensor
) -> Tensor:
    """Return scores [K, S] and add each segment's gradient to the accumulator, block of output rows by block."""
    segments = len(boundaries) - 1
    # fp64, as in `segments`: how many blocks a score is cut into does not reach its fp32 result.
    scores_KS = accumulator_OI.new_zeros(direction_KOI.shape[0], segments, dtype=torch.float64)
    row_bytes = accumulator_OI.shape[1] * accumulator_OI.element_size()
    for rows in pieces(accumulator_OI.shape[0], block_bytes(x_TI) // row_bytes):
        # Segments inside: the block of the accumulator stays in a CPU's cache for all of them.
        for i, (start, end) in enumerate(pairwise(boundaries)):
            if start == end:
                # An empty segment scores 0, and a product over no token would only add zeros to the accumulator.
                continue
            gradient_NI = mm(operand(grad_TO[start:end, rows]).t(), operand(x_TI[start:end]))
            # Before it is added: read off the running sum, scores would lose the digits that cancel (README.md).
            for k, direction_OI in enumerate(direction_KOI):
                scores_KS[k, i] += (gradient_NI * direction_OI[rows]).sum(dtype=torch.float64)
            accumulator_OI[rows] += gradient_NI
    return scores_KS.to(precise_dtype(x_TI.dtype))


def segment_sum(values_KT: Tensor, ids_T: Tensor, segments: int) -> Tensor:
    """Sum [K, T] by id to [K, S]. An id out of range raises ValueError on the CPU and makes all NaN elsewhere.

    In fp64: sequential on the CPU, by membership elsewhere, where index_add_ is atomic and so in no fixed order.
    """
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
    # By K T entries of each segment: the masked copy is [K, S', T], not [S', T].
    size = max(1, _MEMBER_ENTRIES // max(1, values_KT.numel()))
    for start in range(0, segments, size):
        wanted_S = torch.arange(start, min(start + size, segments), device=ids_T.device)
        member_ST = ids_T == wanted_S[:, None]
        blocks.append(torch.where(member_ST, values_KT.double()[:, None], 0.0).sum(-1))
    return torch.cat(blocks, -1) if blocks else values_KT.new_zeros(values_KT.shape[0], 0, dtype=torch.float64)


def formed_dot(gradient: Tensor, direction: Tensor) -> Tensor:
    """<G, V_k> in fp64 [K], multiplied in the wider of the dtypes and at least in fp32.

    Block by block, so that a wider copy of a half-precision gradient never exists whole.
    """
    dtype = torch.promote_types(torch.promote_types(gradient.dtype, direction.dtype), torch.float32)
    size = _FORMED_BLOCK.get(gradient.device.type, _FORMED_BLOCK["cuda"])
    if gradient.numel() <= size:  # most of a model's parameters; it is their number that costs, not their size
        return _block_dot(gradient, direction, dtype)
    blocks = zip(gradient.reshape(-1).split(size), direction.flatten(1).split(size, 1), strict=True)
    return torch.stack([_block_dot(part, part_of_v, dtype) for part, part_of_v in blocks]).sum(0)


def _block_dot(gradient: Tensor, direction: Tensor, dtype: torch.dtype) -> Tensor:
    return (direction.to(dtype) * gradient.to(dtype)).flatten(1).sum(1).double()
