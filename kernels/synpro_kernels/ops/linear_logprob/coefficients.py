"""What a token's row of logit gradients needs to know of the token: five numbers, for every backend the same."""

import torch
from torch import Tensor

from synpro_kernels.ops.linear_logprob.types import LogitSettings, Stats


def coefficients(stats: Stats, entropy_T: Tensor | None, grads_T3: Tensor, settings: LogitSettings) -> Tensor:
    """[T, 5]: what a token's row of dL/dlogit needs, from the gradients of (logprob, logsumexp, entropy).

    dL/dproduct = slope p (constant - g_entropy (z - m)) + slope g_logprob [target], with p = e^(z-m) / s. Columns:
    m, slope / s, constant, g_entropy, slope g_logprob. `entropy_T` may be None where no entropy gradient flows.
    """
    grad_logprob, grad_logsumexp, grad_entropy = grads_T3.unbind(1)
    slope = 1.0 / settings.temperature
    constant = grad_logsumexp - grad_logprob
    if entropy_T is not None:  # d entropy / dz = -p (log p + entropy), with log p = (z - m) - log s
        constant = constant - grad_entropy * (entropy_T - stats.sumexp.log())
    # 1 / s and the slope in one factor: a division a token, none a logit.
    return torch.stack([stats.maximum, slope / stats.sumexp, constant, grad_entropy, slope * grad_logprob], 1)
