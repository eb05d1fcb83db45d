"""The PyTorch paths: blocks of tokens against blocks of the direction. Runs on any device; never holds [T, O].

Shapes: T tokens, I inputs, O outputs, K directions; C tokens of a block, R the contracted side, N columns of a block.
"""

from collections.abc import Iterator, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from synpro_kernels.grad_dot.implementation import mm, precise_dtype

# Bytes of one block of products: near the size of a CPU's caches, long GEMMs on a GPU.
_BLOCK_BYTES = {"cpu": 8 << 20, "cuda": 256 << 20}
_COLUMNS = {"cpu": 1024, "cuda": 8192}


def contract_over_inputs(outputs: int, inputs: int) -> bool:
    """Whether to compute V x (then dot with b) rather than b V (then dot with x): the shorter product row.

    Both orders multiply 2 T O I; the wider side makes the longer reduction, and the epilogue then touches the other.
    """
    return inputs >= outputs


def grad_dot_tokens(
    x_TI: Tensor, grad_TO: Tensor, direction_KOI: Tensor, scale_KO: Tensor | None, over_inputs: bool
) -> Tensor:
    """Return b_t . (V x_t) for every direction and token: [K, T]."""
    rows_TR, other_TN = (x_TI, grad_TO) if over_inputs else (grad_TO, x_TI)
    tokens, width = other_TN.shape
    dots_KT = x_TI.new_zeros(direction_KOI.shape[0], tokens, dtype=precise_dtype(x_TI.dtype))
    columns = min(width, _per_device(_COLUMNS, x_TI))
    for block in _spans(tokens, _per_device(_BLOCK_BYTES, x_TI) // (columns * dots_KT.element_size())):
        rows_CR, other_CN = (_operand(t[block]) for t in (rows_TR, other_TN))
        for k, direction_OI in enumerate(direction_KOI):
            scale_O = None if scale_KO is None else scale_KO[k]
            for span in _spans(width, columns):
                v_RN = _direction_block(direction_OI, scale_O, span, over_inputs, x_TI.dtype)
                dots_KT[k, block] += mm(rows_CR, v_RN).mul_(other_CN[:, span]).sum(-1)
    return dots_KT


def low_rank_tokens(x_TI: Tensor, grad_TO: Tensor, left_KOr: Tensor, right_KrI: Tensor) -> Tensor:
    """Return (left^T b_t) . (right x_t) for every direction and token: [K, T]."""
    tokens, width = x_TI.shape[0], max(x_TI.shape[1], grad_TO.shape[1])
    dots_KT = x_TI.new_zeros(left_KOr.shape[0], tokens, dtype=precise_dtype(x_TI.dtype))
    factors = [(_operand(left), _operand(right).t()) for left, right in zip(left_KOr, right_KrI, strict=True)]
    for block in _spans(tokens, _per_device(_BLOCK_BYTES, x_TI) // (width * dots_KT.element_size())):
        x_CI, grad_CO = _operand(x_TI[block]), _operand(grad_TO[block])
        for k, (left_Or, right_Ir) in enumerate(factors):
            dots_KT[k, block] = mm(x_CI, right_Ir).mul_(mm(grad_CO, left_Or)).sum(-1)
    return dots_KT


def grad_dot_prefix(
    x_TI: Tensor, grad_TO: Tensor, direction_KOI: Tensor, boundaries: Sequence[int], accumulator_OI: Tensor
) -> Tensor:
    """Return scores [K, S] and add each segment's gradient to the accumulator, block of output rows by block."""
    segments = len(boundaries) - 1
    scores_KS = accumulator_OI.new_zeros(direction_KOI.shape[0], segments, dtype=torch.float64)
    row_bytes = accumulator_OI.shape[1] * accumulator_OI.element_size()
    for rows in _spans(accumulator_OI.shape[0], _per_device(_BLOCK_BYTES, x_TI) // row_bytes):
        for i, (start, end) in enumerate(pairwise(boundaries)):
            if start == end:
                continue
            gradient_NI = mm(_operand(grad_TO[start:end, rows]).t(), _operand(x_TI[start:end]))
            for k, direction_OI in enumerate(direction_KOI):
                scores_KS[k, i] += (gradient_NI * direction_OI[rows]).sum(dtype=torch.float64)
            accumulator_OI[rows] += gradient_NI
    return scores_KS.to(precise_dtype(x_TI.dtype))


def _per_device(table: dict[str, int], like: Tensor) -> int:
    return table.get(like.device.type, table["cuda"])


def _spans(total: int, size: int) -> Iterator[slice]:
    size = max(1, size)
    for start in range(0, total, size):
        yield slice(start, min(start + size, total))


def _operand(tensor: Tensor) -> Tensor:
    """What the GEMMs multiply: CPUs without half-precision units get fp32 copies, everything else the tensor."""
    return tensor.float() if tensor.device.type == "cpu" and tensor.dtype != torch.float64 else tensor


def _direction_block(
    direction_OI: Tensor, scale_O: Tensor | None, span: slice, over_inputs: bool, dtype: torch.dtype
) -> Tensor:
    """[R, N]: the block of V^T (over inputs) or of V whose columns are `span`, decoded where it is stored in fp8."""
    block = direction_OI[span] if over_inputs else direction_OI[:, span]
    if scale_O is not None:
        block = block.float() * (scale_O[span] if over_inputs else scale_O)[:, None]
        block = block.to(dtype)
    return _operand(block.t() if over_inputs else block)
