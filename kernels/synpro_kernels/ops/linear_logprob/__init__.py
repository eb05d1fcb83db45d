"""Log-probability, log-sum-exp and entropy of a linear output layer, without holding its logits.

`linear_logprob` is the op, `linear_logprob_ref` its definition; `linear_cross_entropy` and `linear_policy_loss` make
their gradients within the forward pass. The maths and the counts are in README.md here.
"""

from synpro_kernels.ops.linear_logprob.cross_entropy import CrossEntropy, linear_cross_entropy
from synpro_kernels.ops.linear_logprob.definition import LogProbs, linear_logprob_ref
from synpro_kernels.ops.linear_logprob.op import linear_logprob
from synpro_kernels.ops.linear_logprob.policy import linear_policy_loss
from synpro_kernels.ops.linear_logprob.skip import TileSkip

__all__ = [
    "CrossEntropy",
    "LogProbs",
    "TileSkip",
    "linear_cross_entropy",
    "linear_logprob",
    "linear_logprob_ref",
    "linear_policy_loss",
]
