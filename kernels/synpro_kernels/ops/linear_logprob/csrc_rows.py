"""The row kernels in C++ (csrc/linear_logprob.cpp), on blocks of fp32 products in a CPU's memory."""

import torch
from torch import Tensor

from synpro_kernels.ops.linear_logprob.types import LogitSettings, Stats


def merge_(block_CB: Tensor, stats: Stats, column_C: Tensor, start: int, settings: LogitSettings) -> None:
    """Fold a block's logits into `stats`, in place; the block stays as it is."""
    # Called as a plain operator within ours: it has no autograd formula, and the outer op is what compilers see.
    torch.ops.synpro_csrc.merge_logits_(block_CB, *stats, column_C, start, settings.scale)


def differentiate(
    block_CB: Tensor, coefficients_C5: Tensor, column_C: Tensor, start: int, settings: LogitSettings, dtype: torch.dtype
) -> Tensor:
    """dL/dproduct of a block as `dtype`, in the block's own memory where that is its dtype already."""
    capped = settings.softcap is not None
    torch.ops.synpro_csrc.differentiate_logits_(block_CB, coefficients_C5, column_C, start, settings.scale, capped)
    return block_CB.to(dtype)
