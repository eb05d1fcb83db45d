"""Ops with one contract each and a plain PyTorch reference that is their definition. Knows torch and Triton only.

The ops are importable from here; each op's folder holds its parts, and a README.md with its maths and counts. (After
`import synpro_kernels`, the attribute `linear_logprob` is the function; reach into the folder of that name with
`from synpro_kernels.linear_logprob import ...`.)
"""

from synpro_kernels.linear_logprob import (
    CrossEntropy,
    LogProbs,
    TileSkip,
    linear_cross_entropy,
    linear_logprob,
    linear_logprob_ref,
    linear_policy_loss,
)
from synpro_kernels.policy_loss import SurrogateTerms, grpo_loss, k3

__all__ = [
    "CrossEntropy",
    "LogProbs",
    "SurrogateTerms",
    "TileSkip",
    "grpo_loss",
    "k3",
    "linear_cross_entropy",
    "linear_logprob",
    "linear_logprob_ref",
    "linear_policy_loss",
]
