"""The row kernels: what is done to one block of products, between the matrix products.

`merge_` folds a block into each token's running statistics; `differentiate` turns a block into its gradient. Each has a
C++ and a Triton twin; the PyTorch one here is for fp64 and for machines without them.

A block holds f(hidden weight^T + bias), f being tanh(. / softcap) or the identity; logits are `scale` times it.
Shapes: C tokens and B vocabulary entries of a block. `column` is the target's place in this rank's shard and `start`
the block's first column there; a target outside the block belongs to another one.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from synpro_kernels.ops.linear_logprob.dispatch import Implementation
from synpro_kernels.ops.linear_logprob.settings import LogitSettings

# Stands for log 0 where it meets a probability of 0 (0 * -inf would be NaN).
_LOG_FLOOR = -1e4


class Stats(NamedTuple):
    """What has been seen of each token's logits: m = max z, s = sum e^(z-m), u = sum e^(z-m) (z-m), z of the target."""

    maximum: Tensor
    sumexp: Tensor
    weighted: Tensor
    target_logit: Tensor

    @classmethod
    def empty(cls, tokens: int, like: Tensor, dtype: torch.dtype) -> "Stats":
        """Statistics of no logit at all."""
        zeros = [like.new_zeros(tokens, dtype=dtype) for _ in range(3)]
        return cls(like.new_full((tokens,), -torch.inf, dtype=dtype), *zeros)

    def relative_to(self, top: Tensor) -> tuple[Tensor, Tensor]:
        """(sumexp, weighted) around another maximum `top`, not below this one; what is masked whole adds nothing."""
        shift = (self.maximum - top).nan_to_num(nan=0.0, neginf=_LOG_FLOOR)
        decay = shift.exp()
        return decay * self.sumexp, decay * (self.weighted + self.sumexp * shift)

    def rows(self, chosen: slice) -> "Stats":
        """Views of some tokens' statistics."""
        return Stats(*(part[chosen] for part in self))


def coefficients(stats: Stats, entropy_T: Tensor | None, grads_T3: Tensor, settings: LogitSettings) -> Tensor:
    """[T, 5]: what a token's row of dL/dlogit needs, from the gradients of (logprob, logsumexp, entropy).

    dL/dproduct = slope p (constant - g_entropy (z - m)) + slope g_logprob [target], with p = e^(z-m) / s. Columns:
    m, slope / s, constant, g_entropy, slope g_logprob. `entropy_T` may be None where no entropy gradient flows.
    """
    grad_logprob, grad_logsumexp, grad_entropy = grads_T3.unbind(1)
    slope = 1.0 / settings.temperature
    constant = grad_logsumexp - grad_logprob
    if entropy_T is not None:  # d entropy / dz = -p (log p + entropy), with log p = (z - m) - log s
        constant = constant - grad_entropy * (entropy_T - stats.sumexp.log())
    return torch.stack([stats.maximum, slope / stats.sumexp, constant, grad_entropy, slope * grad_logprob], 1)


def merge_(
    block_CB: Tensor, stats: Stats, column_C: Tensor, start: int, settings: LogitSettings, how: Implementation
) -> None:
    """Fold a block's logits into `stats`, in place; the block stays as it is."""
    if how == "triton":
        from synpro_kernels.ops.linear_logprob import triton_rows

        triton_rows.merge_(block_CB, stats, column_C, start, settings)
    elif how == "csrc":
        torch.ops.synpro_csrc.merge_logits_(block_CB, *stats, column_C, start, settings.scale)
    else:
        _merge_torch(block_CB, stats, column_C - start, settings.scale)


def differentiate(
    block_CB: Tensor,
    coefficients_C5: Tensor,
    column_C: Tensor,
    start: int,
    settings: LogitSettings,
    how: Implementation,
    dtype: torch.dtype,
) -> Tensor:
    """dL/dproduct of a block as `dtype`, in the block's own memory where that is its dtype already."""
    if how == "triton":
        from synpro_kernels.ops.linear_logprob import triton_rows

        return triton_rows.differentiate(block_CB, coefficients_C5, column_C, start, settings, dtype)
    capped = settings.softcap is not None
    if how == "csrc":
        torch.ops.synpro_csrc.differentiate_logits_(block_CB, coefficients_C5, column_C, start, settings.scale, capped)
    else:
        _differentiate_torch(block_CB, coefficients_C5, column_C - start, settings.scale, capped=capped)
    return block_CB.to(dtype)


def _own_columns(column_C: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """(whether the column is in this block, the column or 0), each [C, 1]."""
    own = (column_C >= 0) & (column_C < width)
    return own[:, None], torch.where(own, column_C, 0)[:, None]


def _merge_torch(block_CB: Tensor, stats: Stats, column_C: Tensor, scale: float) -> None:
    z_CB = block_CB * scale
    own, column = _own_columns(column_C, block_CB.shape[1])
    stats.target_logit.add_(torch.where(own, z_CB.gather(1, column), 0.0).squeeze(1))
    top = torch.maximum(stats.maximum, z_CB.amax(dim=1))
    origin = top.masked_fill(top == -torch.inf, 0.0)  # everything masked so far: an empty sum
    shift = (stats.maximum - origin).clamp_min_(_LOG_FLOOR)
    decay = shift.exp()
    z_CB -= origin[:, None]
    e_CB = z_CB.exp()
    stats.weighted.copy_(decay * (stats.weighted + stats.sumexp * shift))
    stats.sumexp.mul_(decay).add_(e_CB.sum(dim=1))
    stats.weighted.add_(e_CB.mul_(z_CB.clamp_min_(_LOG_FLOOR)).sum(dim=1))
    stats.maximum.copy_(top)


def _differentiate_torch(
    block_CB: Tensor, coefficients_C5: Tensor, column_C: Tensor, scale: float, *, capped: bool
) -> None:
    maximum, inverse, constant, grad_entropy, grad_target = coefficients_C5[:, :, None].unbind(1)
    slope_CB = 1.0 - block_CB.square() if capped else None
    z_CB = block_CB.mul_(scale).sub_(maximum)
    p_CB = z_CB.exp().mul_(inverse)
    torch.mul(p_CB, z_CB.clamp_min_(_LOG_FLOOR).mul_(-grad_entropy).add_(constant), out=block_CB)
    own, column = _own_columns(column_C, block_CB.shape[1])
    # One entry a row, so a plain write: adding scatters are not repeatable on GPUs.
    block_CB.scatter_(1, column, block_CB.gather(1, column) + torch.where(own, grad_target, 0.0))
    if slope_CB is not None:
        block_CB.mul_(slope_CB)
