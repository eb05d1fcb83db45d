"""What policy optimisation minimises: a surrogate of the gain, a divergence from a reference, an entropy bonus."""

from synpro_kernels.ops.policy_loss.divergence import DIVERGENCES, k1, k2, k3
from synpro_kernels.ops.policy_loss.histogram import RATIO_EDGES, ratio_quantile
from synpro_kernels.ops.policy_loss.loss import policy_loss
from synpro_kernels.ops.policy_loss.surrogates import SURROGATES, Gain, Surrogate
from synpro_kernels.ops.policy_loss.types import PolicyObjective, PolicyTokens, SurrogateTerms

__all__ = [
    "DIVERGENCES",
    "RATIO_EDGES",
    "SURROGATES",
    "Gain",
    "PolicyObjective",
    "PolicyTokens",
    "Surrogate",
    "SurrogateTerms",
    "k1",
    "k2",
    "k3",
    "policy_loss",
    "ratio_quantile",
]
