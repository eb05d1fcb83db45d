"""The work that linear_logprob's benchmark gives its contenders: inputs, outputs, objective.

The objective is the mean of -logprob, less half the mean entropy for those that compute entropy, so that one set of
inputs has two true gradients. Shapes: T tokens, H width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

ENTROPY_SHARE = 0.5


class Outputs(NamedTuple):
    """What a contender computed, [T] each, or the mean loss alone. None: it cannot."""

    logprob: Tensor | None = None
    logsumexp: Tensor | None = None
    entropy: Tensor | None = None
    loss: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class Shape:
    """Sizes and dtype of the problem."""

    tokens: int
    width: int
    vocab: int
    dtype: torch.dtype

    @property
    def forward_flops(self) -> float:
        """FLOPs of the one product that a forward pass needs."""
        return 2.0 * self.tokens * self.width * self.vocab

    @property
    def input_bytes(self) -> int:
        """Bytes of hidden and weight."""
        return (self.tokens + self.vocab) * self.width * self.dtype.itemsize


class Inputs(NamedTuple):
    """One input set; hidden and weight are leaves that collect gradients."""

    hidden_TH: Tensor
    weight_VH: Tensor
    target_T: Tensor


def make_inputs(shape: Shape, device: torch.device, seed: int, logit_std: float) -> Inputs:
    """Draw random inputs; equal seeds give equal inputs on one device.

    logit_std: standard deviation of the logits; their softmax has about log(V) - logit_std^2 / 2 nats of entropy.
    """
    generator = torch.Generator(device).manual_seed(seed)
    spread = logit_std * shape.width**-0.5
    hidden = torch.randn(shape.tokens, shape.width, device=device, generator=generator)
    weight = torch.randn(shape.vocab, shape.width, device=device, generator=generator).mul_(spread)
    target = torch.randint(shape.vocab, (shape.tokens,), device=device, generator=generator)
    return Inputs(hidden.to(shape.dtype).requires_grad_(), weight.to(shape.dtype).requires_grad_(), target)


def outputs_of_logits(logits_TV: Tensor, target_T: Tensor, *, entropy: bool, precise: torch.dtype) -> Outputs:
    """The plain definition: what PyTorch's users write. Log-probabilities are taken in `precise`."""
    own_T1 = logits_TV.gather(1, target_T[:, None])
    logprobs_TV = F.log_softmax(logits_TV, dim=-1, dtype=precise)
    del logits_TV  # nothing needs them any more, and they are as large as what follows
    logprob = logprobs_TV.gather(1, target_T[:, None]).squeeze(1)
    logsumexp = own_T1.squeeze(1) - logprob
    spread = -(logprobs_TV.exp() * logprobs_TV).sum(-1) if entropy else None
    return Outputs(logprob=logprob, logsumexp=logsumexp, entropy=spread)


def differentiate(outputs: Outputs) -> None:
    """Send the objective's gradient back through what was computed."""
    if outputs.loss is not None:
        outputs.loss.backward()
        return
    assert outputs.logprob is not None
    each = 1.0 / outputs.logprob.numel()
    tensors, grads = [outputs.logprob], [torch.full_like(outputs.logprob, -each)]
    if outputs.entropy is not None:
        tensors.append(outputs.entropy)
        grads.append(torch.full_like(outputs.entropy, -each * ENTROPY_SHARE))
    torch.autograd.backward(tensors, grads)


def join(parts: Sequence[Outputs]) -> Outputs:
    """Put the outputs of consecutive chunks of tokens together; what one lacks, all lack."""
    columns = ([value for value in column if value is not None] for column in zip(*parts, strict=True))
    return Outputs(*(torch.cat(values) if values else None for values in columns))
