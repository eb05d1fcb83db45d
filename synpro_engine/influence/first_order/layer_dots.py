"""One layer's part of <grad, v>, position by position, from the layer's input and output gradient.

A parameter's gradient is a sum over positions (for a linear layer, of the outer products b_t a_t^T of output gradient
and input), so <grad, v> falls apart into one number a position: b_t . (V a_t) for a linear layer, b_t . v for its
bias, b_t . V[token_t] for the embedding, sum_d b_td n_td v_d for a norm's weight with normalised input n, which is also
summed over heads where each has its own norm. No weight gradient is ever formed.

Tensor-parallel ranks split Megatron's layers: each function gives this rank's part, and the sum over the ranks is the
whole. Shapes are Megatron's, sequence first: [S, B, ...], S the whole sequence or, where
sequence-parallel ranks hold a part of the positions, that part. K directions, fp32 or better out.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from megatron.core.models.common.embeddings.language_model_embedding import LanguageModelEmbedding
from megatron.core.tensor_parallel.layers import ColumnParallelLinear, RowParallelLinear
from torch import Tensor, nn
from torch.nn import Parameter

from synpro_engine.dist import Topology, sum_over
from synpro_engine.model.head import HiddenHead
from synpro_engine.model.layers import FullWidthRMSNorm, HeadRMSNorm, RMSNorm
from synpro_kernels import bias_dot, embedding_dot, grad_dot, scale_dot

Site = Callable[[Tensor, Tensor], Tensor]
"""(input, output gradient) -> shares [K, S, B]."""


def weight_of(module: nn.Module) -> Parameter | None:
    """The weight that is scored where `module` is called, or None. The output layer's is scored with the loss."""
    if isinstance(module, LanguageModelEmbedding):
        return module.word_embeddings.weight
    # HiddenHead is a column-parallel layer that multiplies nothing: its logits exist in the loss alone.
    classes = (ColumnParallelLinear, RowParallelLinear, RMSNorm, FullWidthRMSNorm)
    return module.weight if isinstance(module, classes) and not isinstance(module, HiddenHead) else None


def bias_of(module: nn.Module) -> Parameter | None:
    """The bias that is scored where `module` is called, or None; split with the outputs, as queries, keys and values
    are."""
    return module.bias if isinstance(module, ColumnParallelLinear) and not isinstance(module, HiddenHead) else None


def bias_site(direction_KO: Tensor) -> Site:
    """The site of a column-parallel layer's bias: b_t . v_k."""
    return lambda _x, grad: bias_dot(grad, direction_KO, _one_segment(grad), segments=1, per_token=True).tokens


def site_of(module: Any, direction: Tensor, topology: Topology) -> Site | None:
    """The site of a module with a weight, along directions [K, *weight.shape]; None where another rank counts it.

    The embedding's input are token ids [B, S].
    """
    if isinstance(module, LanguageModelEmbedding):
        # Under sequence parallelism the embedding's output is cut by position, its ids are not.
        start = module.word_embeddings.vocab_start_index
        return lambda ids, grad: embedding_shares(ids.t(), whole_sequence(grad, topology), direction, start)
    # Megatron gathers x into a buffer that all layers share, so it is gathered again here, for a moment.
    if isinstance(module, ColumnParallelLinear):
        return lambda x, grad: linear_shares(whole_sequence(x, topology), grad, direction)
    # Its output is summed over ranks and, under sequence parallelism, cut by position: so is the gradient.
    if isinstance(module, RowParallelLinear):
        return lambda x, grad: linear_shares(x, whole_sequence(grad, topology), direction)
    if isinstance(module, FullWidthRMSNorm):
        return lambda x, grad: scale_shares(_normed_full_width(module, x, topology), grad.flatten(-2), direction)
    if isinstance(module, HeadRMSNorm):  # each rank has its own heads, all positions and all of the weight
        return lambda x, grad: head_scale_shares(_normed(module, x), grad, direction)
    assert isinstance(module, RMSNorm)
    # Some ranks may leave this site out, because it has no collective in it.
    if topology.tp.rank > 0 and not topology.sequence_parallel:
        return None  # every rank sees the same positions and holds the same weight
    return lambda x, grad: scale_shares(_normed(module, x), grad, direction)


def linear_shares(x_SBI: Tensor, grad_SBO: Tensor, direction_KOI: Tensor) -> Tensor:
    """b_t . (V_k a_t), [K, S, B]."""
    return grad_dot(x_SBI, grad_SBO, direction_KOI, _one_segment(grad_SBO), segments=1, per_token=True).tokens


def embedding_shares(ids_SB: Tensor, grad_SBH: Tensor, direction_KVH: Tensor, vocab_start: int) -> Tensor:
    """b_t . V_k[token_t], [K, S, B]; 0 for tokens outside of this rank's part of the table."""
    ids = _one_segment(grad_SBH)
    return embedding_dot(
        grad_SBH, ids_SB, direction_KVH, ids, segments=1, vocab_start=vocab_start, per_token=True
    ).tokens


def scale_shares(normed_SBD: Tensor, grad_SBD: Tensor, direction_KD: Tensor) -> Tensor:
    """sum_d b_td n_td v_kd, [K, S, B]; normed_SBD in fp32 or better."""
    ids, grad = _one_segment(grad_SBD), grad_SBD.to(normed_SBD.dtype)
    return scale_dot(normed_SBD, grad, direction_KD, ids, segments=1, per_token=True).tokens


def head_scale_shares(normed_SBnh: Tensor, grad_SBnh: Tensor, direction_Kh: Tensor) -> Tensor:
    """sum over heads of sum_d b_tnd n_tnd v_kd, [K, S, B]."""
    heads = normed_SBnh.size(-2)
    return scale_shares(normed_SBnh.flatten(-2), grad_SBnh.flatten(-2), direction_Kh.repeat(1, heads))


def _one_segment(tokens: Tensor) -> Tensor:
    """Segment ids for the ops, which also sum over segments; here shares of positions are all that is wanted."""
    return torch.zeros(tokens.shape[:-1], dtype=torch.int32, device=tokens.device)


def whole_sequence(part: Tensor, topology: Topology) -> Tensor:
    """Under sequence parallelism the positions of all ranks, in order; else the tensor as it is."""
    if not topology.sequence_parallel:
        return part
    # Within backward passes: ranks run the same graph, so they come to the layers' gathers in the same order.
    parts = [torch.empty_like(part, memory_format=torch.contiguous_format) for _ in range(topology.tp.size)]
    dist.all_gather(parts, part.contiguous(), group=topology.tp.group)
    return torch.cat(parts)


def _normed(module: RMSNorm, x: Tensor) -> Tensor:
    # Without the weight: what it multiplied is asked for, and no layer keeps that.
    return F.rms_norm(_precise(x), (x.size(-1),), None, module.eps)


def _normed_full_width(module: FullWidthRMSNorm, x: Tensor, topology: Topology) -> Tensor:
    """This rank's part of the normalised queries or keys, [S, B, heads x width]; the mean square is over all ranks'."""
    flat = _precise(x).flatten(-2)
    # The norm spans all ranks' heads: a rank's own mean square would be another function.
    squares = sum_over(topology.tp, flat.square().sum(-1, keepdim=True))
    return flat * torch.rsqrt(squares / module.width + module.eps)


def _precise(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
