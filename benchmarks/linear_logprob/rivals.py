"""Who competes in linear_logprob's benchmark. Each entry loads what it needs when asked, and says what it cannot do.

Other libraries are called through the functions they offer their users, and are never installed by this project.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from benchmarks.linear_logprob.problem import Outputs, Shape, join, outputs_of_logits

Compute = Callable[[Tensor, Tensor, Tensor, bool], Outputs]
"""(hidden [T, H], weight [V, H], target [T], whether entropy is wanted) -> outputs; those without entropy ignore it."""


@dataclass(frozen=True, kw_only=True)
class Contender:
    """A way to compute the problem."""

    name: str
    what: str
    load: Callable[[], Compute]
    """Import and prepare; an ImportError means it is not here."""
    ours: bool = False
    cuda_only: bool = False
    persistent: bool = False
    """A form of `gluon_forward`, made for sm_90, halves and whole stages of the width: elsewhere the usual one runs."""

    def why_not(self, device: torch.device, shape: Shape) -> str | None:
        """Why it cannot run on the device or at this shape, or None."""
        if self.cuda_only and device.type != "cuda":
            return "needs CUDA"
        if self.persistent and torch.cuda.get_device_capability(device)[0] != 9:
            return "needs a GPU of sm_90"
        if self.persistent and (shape.dtype == torch.float32 or shape.width % 64 or shape.tokens <= 64):
            return "needs halves, a width of whole 64s and more than 64 tokens"
        return None


def _linear_logprob() -> Compute:
    from synpro_kernels import linear_logprob

    def compute(hidden: Tensor, weight: Tensor, target: Tensor, entropy: bool) -> Outputs:
        found = linear_logprob(hidden, weight, target, entropy=entropy)
        return Outputs(logprob=found.logprob, logsumexp=found.logsumexp, entropy=found.entropy)

    return compute


def _persistent(form: str) -> Compute:
    plain = _linear_logprob()

    def compute(hidden: Tensor, weight: Tensor, target: Tensor, entropy: bool) -> Outputs:
        with patch.dict(os.environ, SYNPRO_PERSISTENT=form):
            return plain(hidden, weight, target, entropy)

    return compute


def _linear_cross_entropy() -> Compute:
    from synpro_kernels import linear_cross_entropy

    return lambda hidden, weight, target, entropy: Outputs(loss=linear_cross_entropy(hidden, weight, target).loss)


def materialised(hidden: Tensor, weight: Tensor, target: Tensor, entropy: bool) -> Outputs:
    """Hold all logits: a linear layer, a log-softmax in fp32, a gather, and the entropy of the same log-softmax."""
    return outputs_of_logits(F.linear(hidden, weight), target, entropy=entropy, precise=torch.float32)


def _compiled() -> Compute:
    compiled = torch.compile(materialised, dynamic=False)

    def compute(hidden: Tensor, weight: Tensor, target: Tensor, entropy: bool) -> Outputs:
        return Outputs(*compiled(hidden, weight, target, entropy))

    return compute


def _chunked(chunk_tokens: int) -> Compute:
    def compute(hidden: Tensor, weight: Tensor, target: Tensor, entropy: bool) -> Outputs:
        chunks = zip(hidden.split(chunk_tokens), target.split(chunk_tokens), strict=True)
        parts: list[Any] = [
            checkpoint(materialised, rows, weight, ids, entropy, use_reentrant=False) for rows, ids in chunks
        ]
        return join(parts)

    return compute


def _liger_cross_entropy(accumulate: torch.dtype | None) -> Compute:
    from liger_kernel.transformers.fused_linear_cross_entropy import LigerFusedLinearCrossEntropyLoss

    loss = LigerFusedLinearCrossEntropyLoss(accum_dtype=accumulate)
    return lambda hidden, weight, target, entropy: Outputs(loss=loss(weight, hidden, target))


def _liger_scaled() -> Compute:
    from liger_kernel.ops.fused_linear_scaled_cross_entropy import LigerFusedLinearScaledCrossEntropyFunction as Liger

    def compute(hidden: Tensor, weight: Tensor, target: Tensor, entropy: bool) -> Outputs:
        found = Liger.apply(hidden, weight, target, return_entropy=entropy)
        nll, spread = found if entropy else (found, None)
        return Outputs(logprob=-nll, entropy=spread)

    return compute


def _liger_selective() -> Compute:
    from liger_kernel.chunked_loss import fused_linear_ppo as liger

    chunk = liger._SELECTIVE_LOGPROB_VOCAB_CHUNK_SIZE
    apply = liger._ChunkedSelectiveLogProbFunction.apply  # what its policy losses call; it has no public name
    return lambda hidden, weight, target, entropy: Outputs(logprob=apply(hidden, weight, target, None, 1.0, chunk))


def _cce(filter_eps: str | None) -> Compute:
    from cut_cross_entropy import linear_cross_entropy

    return lambda hidden, weight, target, entropy: Outputs(
        loss=linear_cross_entropy(hidden, weight, target, reduction="mean", filter_eps=filter_eps)
    )


def _quack() -> Compute:
    from quack.linear_cross_entropy import chunked_linear_cross_entropy

    return lambda hidden, weight, target, entropy: Outputs(loss=chunked_linear_cross_entropy(hidden, weight, target))


def contenders(chunk_tokens: int) -> list[Contender]:
    """Everyone, ours first. `chunk_tokens`: tokens a chunk of the chunked PyTorch path."""
    triton = partial(Contender, cuda_only=True)
    return [
        Contender(name="linear_logprob", what="ours, logits computed again backward", load=_linear_logprob, ours=True),
        Contender(
            name="linear_cross_entropy",
            what="ours, gradients made in the forward pass",
            load=_linear_cross_entropy,
            ours=True,
        ),
        triton(
            name="persistent",
            what="linear_logprob, its forward by a loading warp and one group",
            load=partial(_persistent, "together"),
            persistent=True,
        ),
        triton(
            name="persistent_in_turn",
            what="the same with two groups in turn",
            load=partial(_persistent, "in-turn"),
            persistent=True,
        ),
        Contender(name="materialised", what="PyTorch, all logits held", load=lambda: materialised),
        Contender(name="compiled", what="torch.compile of the same", load=_compiled),
        Contender(
            name="chunked",
            what=f"PyTorch, checkpointed chunks of {chunk_tokens} tokens",
            load=partial(_chunked, chunk_tokens),
        ),
        triton(name="liger", what="Liger fused linear cross-entropy", load=partial(_liger_cross_entropy, None)),
        triton(
            name="liger_fp32",
            what="the same, weight gradient summed in fp32",
            load=partial(_liger_cross_entropy, torch.float32),
        ),
        Contender(name="liger_scaled", what="Liger log-prob and entropy (scaled cross-entropy)", load=_liger_scaled),
        Contender(name="liger_selective", what="Liger log-prob of its policy losses", load=_liger_selective),
        triton(name="cce", what="Cut Cross-Entropy, small gradients skipped (its default)", load=partial(_cce, "high")),
        triton(name="cce_exact", what="Cut Cross-Entropy, nothing skipped", load=partial(_cce, None)),
        triton(name="quack", what="QuACK chunked linear cross-entropy", load=_quack),
    ]
