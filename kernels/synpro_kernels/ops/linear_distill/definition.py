"""What `linear_distill` computes, with every logit held and through autograd: its oracle, in fp64 above all."""

from collections.abc import Sequence

import torch
from torch import Tensor

from synpro_kernels.common.arithmetic import precise
from synpro_kernels.ops.linear_distill.types import Distilled, Teacher, parts_of
from synpro_kernels.ops.linear_logprob.types import IGNORE


def linear_distill_definition(
    hidden: Tensor,
    weight: Tensor,
    target: Tensor,
    *,
    teachers: Sequence[Teacher],
    mixture: Sequence[float] | None = None,
    share: float = 0.5,
    temperature: float = 1.0,
    z_loss: float = 0.0,
    ignore_index: int = IGNORE,
) -> Distilled:
    """Arguments as of `linear_distill`, without a group. Differentiable in hidden and weight as often as wanted."""
    keep = target.flatten() != ignore_index
    logits_TV = precise(hidden).flatten(0, -2)[keep] @ precise(weight).t()
    log_norm_T = logits_TV.logsumexp(-1)
    cross_entropy = (log_norm_T - logits_TV.gather(-1, target.flatten()[keep][:, None])[:, 0]).sum()
    z = z_loss * log_norm_T.square().sum()
    probabilities = [
        part * torch.softmax(precise(one.hidden).flatten(0, -2)[keep] @ precise(one.weight).t() / temperature, -1)
        for one, part in zip(teachers, parts_of(teachers, mixture), strict=True)
    ]
    taught_TV = torch.stack(probabilities).sum(0).detach()
    found_TV = torch.log_softmax(logits_TV / temperature, -1)
    # 0 log 0 is 0: what no teacher expects counts nowhere, whatever the student makes of it.
    terms_TV = torch.xlogy(taught_TV, taught_TV) - taught_TV * found_TV
    divergence = torch.where(taught_TV == 0, 0.0, terms_TV).sum()
    loss = (1 - share) * cross_entropy + z + share * temperature**2 * divergence
    return Distilled(loss, cross_entropy.detach(), z.detach(), divergence.detach())
