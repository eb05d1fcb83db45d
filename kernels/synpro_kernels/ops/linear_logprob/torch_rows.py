"""The row kernels in PyTorch, for fp64 and for machines without the others. Contract and shapes: `types.Kernels`."""

import torch
from torch import Tensor

from synpro_kernels.ops.linear_logprob.types import LOG_FLOOR, LogitSettings, Stats


def merge_(block_CB: Tensor, stats: Stats, column_C: Tensor, start: int, settings: LogitSettings) -> None:
    """Fold a block's logits into `stats`, in place; the block stays as it is."""
    # A copy: the block must stay as it is for the backward of cached logits.
    z_CB = block_CB * settings.scale
    in_block, column = columns_in_block(column_C - start, block_CB.shape[1])
    stats.target_logit.add_(torch.where(in_block, z_CB.gather(1, column), 0.0).squeeze(1))
    # Propagates NaN, unlike Triton's and C++'s: the statistics of such a token are NaN either way.
    top = torch.maximum(stats.maximum, z_CB.amax(dim=1))
    origin = top.masked_fill(top == -torch.inf, 0.0)  # everything masked so far: an empty sum
    # From -inf (nothing seen yet) the floor makes a decay of exactly 0, and 0 * shift stays 0 where -inf gave NaN.
    shift = (stats.maximum - origin).clamp_min_(LOG_FLOOR)
    decay = shift.exp()
    z_CB -= origin[:, None]
    e_CB = z_CB.exp()
    # u before s: its decay needs the sum as it was.
    stats.weighted.copy_(decay * (stats.weighted + stats.sumexp * shift))
    stats.sumexp.mul_(decay).add_(e_CB.sum(dim=1))
    stats.weighted.add_(e_CB.mul_(z_CB.clamp_min_(LOG_FLOOR)).sum(dim=1))
    stats.maximum.copy_(top)


def differentiate(
    block_CB: Tensor, coefficients_C5: Tensor, column_C: Tensor, start: int, settings: LogitSettings, dtype: torch.dtype
) -> Tensor:
    """dL/dproduct of a block as `dtype`, in the block's own memory where that is its dtype already."""
    maximum, inverse, constant, grad_entropy, grad_target = coefficients_C5[:, :, None].unbind(1)
    # The block holds tanh(. / softcap), whose slope is 1 - tanh^2: taken before the block is overwritten.
    slope_CB = 1.0 - block_CB.square() if settings.softcap is not None else None
    # Minus the whole vocabulary's maximum: no exponent is above 0, whatever this block holds.
    z_CB = block_CB.mul_(settings.scale).sub_(maximum)
    p_CB = z_CB.exp().mul_(inverse)
    torch.mul(p_CB, z_CB.clamp_min_(LOG_FLOOR).mul_(-grad_entropy).add_(constant), out=block_CB)
    in_block, column = columns_in_block(column_C - start, block_CB.shape[1])
    # One entry a row, so a plain write: adding scatters are not repeatable on GPUs.
    block_CB.scatter_(1, column, block_CB.gather(1, column) + torch.where(in_block, grad_target, 0.0))
    if slope_CB is not None:
        block_CB.mul_(slope_CB)
    return block_CB.to(dtype)


def columns_in_block(column_C: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """(whether the column is in this block, the column or 0), each [C, 1]."""
    in_block = (column_C >= 0) & (column_C < width)
    return in_block[:, None], torch.where(in_block, column_C, 0)[:, None]
