"""Log-probability, log-sum-exp and entropy of a linear output layer, without holding its logits.

`linear_logprob` is the op and `linear_logprob_definition` its definition; `linear_cross_entropy` and
`linear_policy_loss` make their gradients within the forward pass. The maths and the counts are in README.md here.
"""

from synpro_kernels.ops.linear_logprob.block_sizes import cached_logits_bytes
from synpro_kernels.ops.linear_logprob.cross_entropy import linear_cross_entropy
from synpro_kernels.ops.linear_logprob.definition import linear_logprob_definition
from synpro_kernels.ops.linear_logprob.op import linear_logprob
from synpro_kernels.ops.linear_logprob.policy import linear_policy_loss
from synpro_kernels.ops.linear_logprob.skip import TileSkip
from synpro_kernels.ops.linear_logprob.types import IGNORE, CrossEntropy, LogProbs

__all__ = [
    "IGNORE",
    "CrossEntropy",
    "LogProbs",
    "TileSkip",
    "cached_logits_bytes",
    "linear_cross_entropy",
    "linear_logprob",
    "linear_logprob_definition",
    "linear_policy_loss",
]
