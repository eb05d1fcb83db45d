"""The row kernels in C++ (csrc/linear_distill.cpp), on blocks of fp32 products in a CPU's memory."""

import torch
from torch import Tensor

from synpro_kernels.ops.linear_distill.types import Norms, Slopes


def norms_(
    block_CB: Tensor, norms: Norms, column_C: Tensor, start: int, inverse_temperature: float, both: bool
) -> None:
    """Fold a block's logits into `norms`, in place; the block stays as it is."""
    # Called as plain operators within ours: they have no autograd formula, and the outer op is what compilers see.
    torch.ops.synpro_csrc.distill_norms_(block_CB, *norms, column_C, start, inverse_temperature, both)


def mix_(block_CB: Tensor, teacher_C3: Tensor, into_CB: Tensor, inverse_temperature: float, first: bool) -> None:
    """Add a teacher's part of the mean to `into_CB`, or write it there."""
    torch.ops.synpro_csrc.distill_mix_(block_CB, teacher_C3, into_CB, inverse_temperature, first)


def differentiate(
    block_CB: Tensor, taught_CB: Tensor, others_CB: Tensor | None, student_C4: Tensor, teacher_C3: Tensor,
    column_C: Tensor, start: int, slopes: Slopes, divergence_C: Tensor, dtype: torch.dtype,
) -> Tensor:  # fmt: skip
    """The loss's slope by each logit as `dtype`; the block's part of the divergence is added."""
    torch.ops.synpro_csrc.distill_differentiate_(
        block_CB, taught_CB, others_CB, student_C4, teacher_C3, column_C, start,
        slopes.inverse_temperature, slopes.pull, slopes.label, divergence_C,
    )  # fmt: skip
    return block_CB.to(dtype)
