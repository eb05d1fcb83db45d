"""Cross-entropy and divergence from teachers at a linear output layer, without the logits of either."""

from synpro_kernels.ops.linear_distill.definition import linear_distill_definition
from synpro_kernels.ops.linear_distill.op import linear_distill
from synpro_kernels.ops.linear_distill.types import Distilled, Teacher

__all__ = ["Distilled", "Teacher", "linear_distill", "linear_distill_definition"]
