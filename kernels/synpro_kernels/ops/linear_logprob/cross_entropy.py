"""The training loss of a linear output layer: cross-entropy and z-loss, with gradients made in the forward pass."""

from collections.abc import Sequence
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor

from synpro_kernels.common.arithmetic import precise_dtype
from synpro_kernels.common.transfer import to_device
from synpro_kernels.ops.linear_logprob.along import Along
from synpro_kernels.ops.linear_logprob.fused import Objective, Work, minimise
from synpro_kernels.ops.linear_logprob.op import linear_logprob
from synpro_kernels.ops.linear_logprob.types import IGNORE, CrossEntropy, LogitSettings, LogProbs
from synpro_kernels.ops.linear_logprob.validate import check_along, check_layer, check_main_grad, check_per_token


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    target: Tensor,
    *,
    bias: Tensor | None = None,
    temperature: float = 1.0,
    softcap: float | None = None,
    ignore_index: int = IGNORE,
    vocab_start: int = 0,
    group: dist.ProcessGroup | None = None,
    z_loss: float = 0.0,
    loss_mask: Tensor | None = None,
    reduction: Literal["mean", "sum", "none"] = "mean",
    into_main_grad: bool = False,
    along: Tensor | None = None,
    along_tokens: bool = False,
) -> CrossEntropy:
    """Return -log p(target) + z_loss logsumexp^2 (arXiv 2204.02311), without holding the logits.

    Arguments are those of `linear_logprob` (`target` and `loss_mask` may be on the host: then nothing is waited for,
    but under a group, and with "none"), and:

    Args:
        z_loss: weight of the squared log-sum-exp, >= 0.
        loss_mask: [...] like target, any real dtype: each token's weight; tokens with 0 cost nothing. None: all 1.
        reduction: "sum" over tokens of weight times loss; "mean": that over the labelled tokens' sum of weights (NaN
            where it is 0, as in PyTorch); "none": per token, times its weight, through `linear_logprob` (its gradient
            is not known in the forward pass, so the logits are computed twice).
        into_main_grad: add the weight's gradient, in fp32, to Megatron's `weight.main_grad` instead of returning it to
            autograd (which then gets a tensor without meaning: never combine this with torch.autograd.grad).
        along: [K, V, H], directions V_k of the weight, of any floating dtype: also return <d loss / d weight, V_k>, [K]
            in fp64, from the gradient that is made anyway. Wants "sum". Loss and gradients stay the same to the bit.
        along_tokens: return each token's share of it instead, [K, ...] like target in fp32 (fp64), for one product more
            for each direction, in hidden's dtype.

    With "sum" and "mean" the gradients are made in the forward pass, where gradients are enabled and wanted: three
    matrix products in all. An fp32 gradient of hidden and weight then lives until backward, which can run once.

    Raises:
        ValueError: naming the argument and what was expected.

    """
    check_layer(hidden, weight, target, bias, temperature, softcap, vocab_start, host_target=True)
    check_main_grad(weight, into_main_grad)
    _check(target, z_loss, loss_mask, reduction, into_main_grad)
    check_along(along, weight, reduction)
    settings = LogitSettings(
        temperature=temperature, softcap=softcap, ignore_index=ignore_index, vocab_start=vocab_start
    )
    # A group of one is none: two all-reduces a chunk would each cost a launch for nothing.
    group = None if group is None or group.size() == 1 else group
    target_T, weights = _weighted_targets(target, loss_mask, ignore_index, precise_dtype(hidden.dtype))
    weights = [to_device(each, hidden.device) for each in weights]
    if reduction == "none":
        logprobs = linear_logprob(
            hidden, weight, to_device(target_T, hidden.device).view(target.shape), bias=bias, temperature=temperature,
            softcap=softcap, ignore_index=ignore_index, vocab_start=vocab_start, group=group,
        )  # fmt: skip
        cross_entropy, z = _token_losses(logprobs, z_loss, [each.view(target.shape) for each in weights])
        return CrossEntropy(cross_entropy + z, cross_entropy.detach(), z.detach())
    work = Work(
        objective=_objective(z_loss),
        per_token=weights,
        target_T=target_T,
        settings=settings,
        group=group,
        into_main_grad=into_main_grad,
        along=None if along is None else Along(direction_KVH=along, per_token=along_tokens),
    )
    sums = minimise(hidden.reshape(-1, hidden.shape[-1]), weight, bias, work)
    if reduction == "sum":
        loss, cross_entropy, z, *slopes = sums
        if slopes and along_tokens:
            slopes = [slopes[0].unflatten(1, target.shape)]
        return CrossEntropy(loss, cross_entropy, z, *slopes)
    # Stays on the device: the division needs no host, and a count of 0 is handled by `where` instead of a branch.
    total = weights[0].sum() if weights else to_device((target_T != ignore_index).sum(), hidden.device)
    # Without a token the mean is NaN, but its gradient, like that of every ignored token, is 0.
    return CrossEntropy(
        *(torch.where(total == 0, torch.nan, each / torch.where(total == 0, 1, total)) for each in sums)
    )


def _weighted_targets(
    target: Tensor, loss_mask: Tensor | None, ignore_index: int, dtype: torch.dtype
) -> tuple[Tensor, list[Tensor]]:
    """Targets [T] with those of weight 0 ignored, and the weights [T] where there are any, 0 at ignored targets."""
    # A token of weight 0 becomes an ignored one, which is dropped before the first product.
    target_T = target.reshape(-1)
    if loss_mask is None:
        return target_T, []
    # Cleared at ignored targets first: an arbitrary weight there must not enter the mean's denominator.
    weight_T = loss_mask.reshape(-1).to(dtype).masked_fill(target_T == ignore_index, 0.0)
    return target_T.masked_fill(weight_T == 0, ignore_index), [weight_T]


def _token_losses(logprobs: LogProbs, z_loss: float, weights: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Each token's cross-entropy and z-loss, times its weight where there are weights."""
    cross_entropy, z = -logprobs.logprob, z_loss * logprobs.logsumexp.square()
    for weight in weights:
        cross_entropy, z = cross_entropy * weight, z * weight
    return cross_entropy, z


def _objective(z_loss: float) -> Objective:
    def objective(logprobs: LogProbs, *weights_C: Tensor) -> tuple[Tensor, ...]:
        cross_entropy, z = (loss_C.sum() for loss_C in _token_losses(logprobs, z_loss, weights_C))
        return cross_entropy + z, cross_entropy, z

    return objective


def _check(target: Tensor, z_loss: float, loss_mask: Tensor | None, reduction: str, into_main_grad: bool) -> None:
    if not 0.0 <= z_loss < float("inf"):
        raise ValueError(f"z_loss: expected a finite number >= 0, got {z_loss}")
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f"reduction: expected 'mean', 'sum' or 'none', got {reduction!r}")
    # That path goes through autograd, which knows no buffers.
    if into_main_grad and reduction == "none":
        raise ValueError("reduction: expected 'mean' or 'sum' with into_main_grad, got 'none'")
    if loss_mask is not None:
        check_per_token("loss_mask", loss_mask, target)
