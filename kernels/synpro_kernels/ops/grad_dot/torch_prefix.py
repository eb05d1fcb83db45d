"""The weight-gradient GEMM with scores in PyTorch, on any device: one block of output rows of each segment at a time.

Shapes: T tokens, I inputs, O outputs, K directions, S segments; N output rows of a block.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from synpro_kernels.common.arithmetic import mm, operand, precise_dtype
from synpro_kernels.common.pieces import block_bytes, pieces


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
                continue
            gradient_NI = mm(operand(grad_TO[start:end, rows]).t(), operand(x_TI[start:end]))
            # Before it is added: read off the running sum, scores would lose the digits that cancel (README.md).
            for k, direction_OI in enumerate(direction_KOI):
                scores_KS[k, i] += (gradient_NI * direction_OI[rows]).sum(dtype=torch.float64)
            accumulator_OI[rows] += gradient_NI
    return scores_KS.to(precise_dtype(x_TI.dtype))
