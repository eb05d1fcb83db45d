"""What goes in and comes out, and what the parts of the op pass to each other.

Shapes: T tokens, H widths, V vocabulary of this rank; C tokens and B columns of a block of logits.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


class Teacher(NamedTuple):
    """hidden [..., H_k], row by row beside the student's, and the weight [V, H_k] of its output layer; constants.

    Under a group the weight is this rank's rows of the vocabulary, as the student's is.
    """

    hidden: Tensor
    weight: Tensor


class Distilled(NamedTuple):
    """Sums over the labelled tokens, fp32 (fp64 for fp64); `loss` is differentiable, once, the others are reported.

    loss = (1 - share) cross_entropy + z_loss + share temperature^2 divergence.
    """

    loss: Tensor
    cross_entropy: Tensor
    z_loss: Tensor
    divergence: Tensor
    """KL(mean of the teachers' probabilities || the student's), both at the temperature, in nats."""


def parts_of(teachers: Sequence[Teacher], mixture: Sequence[float] | None) -> list[float]:
    """Each teacher's part of the mean, which sum to 1; ValueError for a mixture that does not fit."""
    given = [1.0] * len(teachers) if mixture is None else [float(part) for part in mixture]
    if len(given) != len(teachers) or not all(math.isfinite(part) and part > 0 for part in given):
        raise ValueError(f"mixture: expected {len(teachers)} numbers above 0, got {mixture}")
    return [part / math.fsum(given) for part in given]


class Norms(NamedTuple):
    """What was seen of each token's logits z, [C] in fp32 (fp64): m = max z, sums of exponentials, z of the target.

    `tempered` is of e^((z - m) / temperature), `sumexp` of e^(z - m).
    """

    maximum: Tensor
    tempered: Tensor
    sumexp: Tensor
    """0 where it was not asked for: at temperature 1 it is `tempered`, and of a teacher nobody needs it."""
    target_logit: Tensor

    @classmethod
    def empty(cls, tokens: int, like: Tensor) -> Norms:
        """Of no logit at all."""
        # Three tensors, not one expanded: each is written in place.
        return cls(like.new_full((tokens,), -torch.inf), *(like.new_zeros(tokens) for _ in range(3)))

    def around(self, top: Tensor, inverse_temperature: float) -> tuple[Tensor, Tensor]:
        """(tempered, sumexp) around another maximum `top`, not below this one; what is masked whole adds nothing."""
        # -inf minus -inf is NaN; a sum of 0 may be moved by any shift.
        shift = torch.where(self.maximum == -torch.inf, 0.0, self.maximum - top)
        return self.tempered * (shift * inverse_temperature).exp(), self.sumexp * shift.exp()


@dataclass(frozen=True, kw_only=True)
class Slopes:
    """What all tokens' rows of gradients have in common."""

    inverse_temperature: float
    pull: float
    """share temperature: of the divergence's slope by a logit, p' - q, in what is minimised."""
    label: float
    """1 - share: what the target's own logit is raised by."""

    @property
    def tempered(self) -> bool:
        """Whether the temperature is another than 1."""
        return self.inverse_temperature != 1.0


Differentiate = Callable[
    [Tensor, Tensor, Tensor | None, Tensor, Tensor, Tensor, int, Slopes, Tensor, torch.dtype], Tensor
]


class Kernels(NamedTuple):
    """One backend: what is done to logits between the matrix products. Blocks [C, B] are contiguous fp32 (fp64).

    `column_C` is the target's column in this rank's rows of the vocabulary, int64, and `start` the block's first one
    there; a target outside the block belongs to another block or rank. `teacher_C3`: the maximum m of its logits, the
    factor c that makes its part of the mean of e^((l - m) / temperature), and log c. `student_C4`: m, the log of
    `tempered`, and what e^((z - m) / temperature) and e^(z - m) are multiplied by in the slope.
    """

    norms_: Callable[[Tensor, Norms, Tensor, int, float, bool], None]
    """(block_CB, norms, column_C, start, inverse_temperature, both): fold a block into `norms`; `sumexp` if `both`."""
    mix_: Callable[[Tensor, Tensor, Tensor, float, bool], None]
    """(block_CB, teacher_C3, into_CB, inverse_temperature, first): add a teacher's part of the mean to `into`, or write
    it there where it is the first; `into` may be the block."""
    differentiate: Differentiate
    """(block_CB, taught_CB, others_CB, student_C4, teacher_C3, column_C, start, slopes, divergence_C, dtype): the
    loss's slope by each logit as `dtype`, in the block's own memory where that is its dtype already; the block's part
    of the divergence is added to `divergence_C`. `taught_CB` are the last teacher's logits, `others_CB` what the ones
    before it made of the mean."""
