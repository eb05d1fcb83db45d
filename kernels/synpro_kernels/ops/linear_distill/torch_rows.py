"""The row kernels in PyTorch, for fp64 and for machines without the others. Contract and shapes: `types.Kernels`."""

import torch
from torch import Tensor

from synpro_kernels.ops.linear_distill.types import Norms, Slopes
from synpro_kernels.ops.linear_logprob.torch_rows import columns_in_block


def norms_(
    block_CB: Tensor, norms: Norms, column_C: Tensor, start: int, inverse_temperature: float, both: bool
) -> None:
    """Fold a block's logits into `norms`, in place; the block stays as it is."""
    in_block, place = columns_in_block(column_C - start, block_CB.shape[1])
    norms.target_logit.add_(torch.where(in_block, block_CB.gather(1, place), 0.0).squeeze(1))
    # Propagates NaN, unlike Triton's and C++'s: the sums of such a token are NaN either way.
    top = torch.maximum(norms.maximum, block_CB.amax(dim=1))
    origin = top.masked_fill(top == -torch.inf, 0.0)  # everything masked so far: an empty sum
    tempered, sumexp = norms.around(origin, inverse_temperature)
    shifted_CB = block_CB - origin[:, None]
    if both:
        norms.sumexp.copy_(sumexp + shifted_CB.exp().sum(1))
    norms.tempered.copy_(tempered + shifted_CB.mul_(inverse_temperature).exp_().sum(1))
    norms.maximum.copy_(top)


def mix_(block_CB: Tensor, teacher_C3: Tensor, into_CB: Tensor, inverse_temperature: float, first: bool) -> None:
    """Add a teacher's part of the mean to `into_CB`, or write it there."""
    maximum, scale, _ = teacher_C3[:, :, None].unbind(1)
    part_CB = ((block_CB - maximum) * inverse_temperature).exp_().mul_(scale)
    if first:
        into_CB.copy_(part_CB)
    else:
        into_CB.add_(part_CB)


def differentiate(
    block_CB: Tensor, taught_CB: Tensor, others_CB: Tensor | None, student_C4: Tensor, teacher_C3: Tensor,
    column_C: Tensor, start: int, slopes: Slopes, divergence_C: Tensor, dtype: torch.dtype,
) -> Tensor:  # fmt: skip
    """The loss's slope by each logit as `dtype`; the block's part of the divergence is added."""
    maximum, log_tempered, of_tempered, of_plain = student_C4[:, :, None].unbind(1)
    taught_maximum, scale, log_scale = teacher_C3[:, :, None].unbind(1)
    log_q_CB = (taught_CB - taught_maximum) * slopes.inverse_temperature
    q_CB = log_q_CB.exp() * scale
    log_q_CB += log_scale
    if others_CB is not None:
        q_CB += others_CB
        log_q_CB = q_CB.log()
    z_CB = block_CB.sub_(maximum)
    tempered_CB = z_CB * slopes.inverse_temperature
    terms_CB = log_q_CB.sub_(tempered_CB).add_(log_tempered).mul_(q_CB)
    # 0 log 0 is 0: what no teacher expects counts nowhere. NaN is not 0, and shows.
    divergence_C += terms_CB.masked_fill_(q_CB == 0, 0.0).sum(1)
    torch.add(tempered_CB.exp_().mul_(of_tempered), z_CB.exp_().mul_(of_plain), out=block_CB)
    block_CB.sub_(q_CB, alpha=slopes.pull)
    in_block, place = columns_in_block(column_C - start, block_CB.shape[1])
    # One entry a row, so a plain write: adding scatters are not repeatable on GPUs.
    block_CB.scatter_(1, place, block_CB.gather(1, place) - in_block.to(block_CB.dtype) * slopes.label)
    return block_CB.to(dtype)
