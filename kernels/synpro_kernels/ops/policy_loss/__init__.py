"""What policy optimisation minimises: the clipped surrogate and the KL divergence from a reference policy."""

from synpro_kernels.ops.policy_loss.surrogate import SurrogateTerms, grpo_loss, k3

__all__ = ["SurrogateTerms", "grpo_loss", "k3"]
