"""b_t . (V x_t) in PyTorch, on any device: blocks of tokens against blocks of the direction; never holds [T, O].

Shapes: T tokens, I inputs, O outputs, K directions; C tokens of a block, R the contracted side, N columns of a block.
"""

import torch
from torch import Tensor

from synpro_kernels.common.arithmetic import mm, operand, precise_dtype
from synpro_kernels.common.pieces import block_bytes, pieces


def grad_dot_tokens(
    x_TI: Tensor, grad_TO: Tensor, direction_KOI: Tensor, scale_KO: Tensor | None, over_inputs: bool
) -> Tensor:
    """Return b_t . (V x_t) for every direction and token: [K, T]."""
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
                dots_KT[k, block] += mm(rows_CR, v_RN).mul_(other_CN[:, span]).sum(-1)
    return dots_KT


def low_rank_tokens(x_TI: Tensor, grad_TO: Tensor, left_KOr: Tensor, right_KrI: Tensor) -> Tensor:
    """Return (left^T b_t) . (right x_t) for every direction and token: [K, T]."""
    tokens, width = x_TI.shape[0], max(x_TI.shape[1], grad_TO.shape[1])
    dots_KT = x_TI.new_zeros(left_KOr.shape[0], tokens, dtype=precise_dtype(x_TI.dtype))
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
