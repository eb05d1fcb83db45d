"""Log-probability, log-sum-exp and entropy of a linear output layer, without holding its logits.

`linear_logprob` is the op, `linear_logprob_ref` its definition; the maths and the counts are in README.md here.
"""

from synpro_kernels.linear_logprob.op import linear_logprob
from synpro_kernels.linear_logprob.reference import LogProbs, linear_logprob_ref

__all__ = ["LogProbs", "linear_logprob", "linear_logprob_ref"]
