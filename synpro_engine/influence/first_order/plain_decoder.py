"""The decoder in plain torch operations on one process, for forward-mode differentiation and as a second opinion.

Megatron's layers are autograd functions with a backward pass only. This computes the same log-probabilities from the
same parameters, whatever tensors stand in for them: fp64 copies, or dual numbers. Slow, and it holds all logits: for
checks. One process, one sequence a row.

Shape suffixes: B rows, S positions, H hidden width; n key heads, r query heads a key head, h head width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import Parameter

from synpro_engine.data import IGNORE
from synpro_engine.model.model import Model
from synpro_engine.model.parked import check_here
from synpro_engine.model.rotary import inverse_frequencies
from synpro_engine.model.weights import BlockWeights, grouped_qkv

Weights = Callable[[Parameter], Tensor]


def plain_logprobs(model: Model, tokens_BS: Tensor, labels_BS: Tensor, weights: Weights) -> Tensor:
    """Log-probability of each label, [B, S], 0 where it is -100; the rest as `plain_logits`."""
    logprobs_BSV = F.log_softmax(plain_logits(model, tokens_BS, weights), -1)
    labelled_BS = labels_BS != IGNORE
    logprob_BS = logprobs_BSV.gather(-1, labels_BS.where(labelled_BS, 0)[..., None])[..., 0]
    return torch.where(labelled_BS, logprob_BS, 0.0)


def plain_logits(model: Model, tokens_BS: Tensor, weights: Weights) -> Tensor:
    """Logits after each position, [B, S, V]; differentiable in what `weights` gives.

    weights: the tensor to compute with in place of a parameter; all of one dtype. ValueError on a split model.
    """
    check_whole(model)
    embedding, final_norm = model.embedding_weight(), model.final_norm_weight()
    assert embedding is not None and final_norm is not None
    check_here(embedding)
    hidden_BSH = F.embedding(tokens_BS, weights(embedding))
    for block in model.blocks():
        assert not block.lora, "adapters are no part of this decoder"
        # Every weight passes through `weights`: one that was read directly would have no tangent, in silence.
        stand_ins: dict[str, Any] = {n: weights(p) for n, p in vars(block).items() if isinstance(p, Parameter)}
        hidden_BSH = _block(model, replace(block, **stand_ins), hidden_BSH)
    hidden_BSH = _rms_norm(hidden_BSH, weights(final_norm), model.config.norm_eps)
    return hidden_BSH @ weights(model.output_weight()).t()


def check_whole(model: Model) -> None:
    """Raise ValueError where this rank holds a part of the model only."""
    topology = model.topology
    if topology.tp.size * topology.pp.size * topology.cp.size > 1:
        raise ValueError(f"model: plain torch needs all of it on one rank, this layout is {topology.layout}")


def _block(model: Model, block: BlockWeights, hidden: Tensor) -> Tensor:
    eps = model.config.norm_eps

    def sublayer(hidden: Tensor, norm: Tensor, f: Callable[[Tensor], Tensor]) -> Tensor:
        changed = _rms_norm(f(hidden), norm, eps) if block.norm_after else f(_rms_norm(hidden, norm, eps))
        return hidden + changed

    hidden = sublayer(hidden, block.attention_norm, lambda x: _attention(model, block, x))
    return sublayer(hidden, block.mlp_norm, lambda x: _swiglu(block, x))


def _attention(model: Model, block: BlockWeights, x: Tensor) -> Tensor:
    """Causal softmax attention with grouped heads, written out."""
    config = model.config
    mixed = x @ block.qkv.t()
    query_key, value = grouped_qkv(mixed if block.qkv_bias is None else mixed + block.qkv_bias, model.head_counts)
    query, key = query_key[..., :-1, :], query_key[..., -1:, :]
    if block.q_norm is not None and block.k_norm is not None:
        width = 1 if block.norm_by_head else 3  # how many of the last dimensions one norm spans
        query = _rms_norm(query.flatten(-width), block.q_norm, config.norm_eps).view_as(query)
        key = _rms_norm(key.flatten(-width), block.k_norm, config.norm_eps).view_as(key)
    frequency = inverse_frequencies(config, x.device)
    query, key = (_rotated(part, frequency) for part in (query, key))
    # Written out, because fused attention has no forward mode.
    score = torch.einsum("bsnrh,btnh->bnrst", query, key[..., 0, :]) / config.head_size**0.5
    later = torch.ones(score.shape[-2:], dtype=torch.bool, device=score.device).triu(1)
    weight = torch.softmax(score.masked_fill(later, float("-inf")), -1)
    out = torch.einsum("bnrst,btnh->bsnrh", weight, value)
    return out.flatten(-3) @ block.proj.t()


def _rotated(x_BSnrh: Tensor, frequency: Tensor) -> Tensor:
    """Each pair (i, i + h/2) turned by position x its frequency (Su et al., arXiv 2104.09864); angles in fp32."""
    # fp32 even where all else is fp64: the model's angles are, and exact ones would be another function.
    angle = torch.outer(torch.arange(x_BSnrh.size(1), dtype=torch.float32, device=x_BSnrh.device), frequency)
    cos, sin = (table.to(x_BSnrh.dtype)[:, None, None] for table in (angle.cos(), angle.sin()))
    first, second = x_BSnrh.chunk(2, -1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), -1)


def _swiglu(block: BlockWeights, x: Tensor) -> Tensor:
    gate, up = (x @ block.fc1.t()).chunk(2, -1)
    return (F.silu(gate) * up) @ block.fc2.t()


def _rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * weight
