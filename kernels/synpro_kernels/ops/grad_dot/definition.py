"""The definitions: plain PyTorch that holds every product, or every segment's gradient.

A linear layer y_t = W x_t with output gradient b_t has the weight gradient sum_t b_t x_t^T; segment i's part of it sums
over its own tokens and is called G_i. Arithmetic is fp32, or fp64 where the inputs are fp64. No validation.
Shapes: T tokens, I = Din inputs, O = Dout outputs, K directions, S segments.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from synpro_kernels.common.arithmetic import precise


def segment_sum_definition(values: Tensor, segment_ids: Tensor, *, segments: int) -> Tensor:
    """Sum values [..., T] into [..., segments] by id; tokens with id -1 belong to none, whatever they hold."""
    # [S, T] of membership, chosen by rather than multiplied with: 0 * NaN is NaN.
    member_ST = segment_ids == torch.arange(segments, device=values.device)[:, None]
    return torch.where(member_ST, precise(values)[..., None, :], 0.0).sum(-1)


def segment_gradients_definition(x: Tensor, grad_out: Tensor, segment_ids: Tensor, *, segments: int) -> Tensor:
    """Return G [segments, O, I]: the weight gradient that each segment alone would give."""
    return torch.stack(
        # S O I entries, which is what the op exists to avoid: for tests at small shapes.
        [precise(grad_out[segment_ids == i]).t() @ precise(x[segment_ids == i]) for i in range(segments)]
    )


def grad_dot_tokens_definition(x: Tensor, grad_out: Tensor, direction: Tensor) -> Tensor:
    """Return b_t . (V x_t) for every token: [T], or [K, T] for K directions."""
    return (precise(grad_out) * (precise(x) @ precise(direction).mT)).sum(-1)


def grad_dot_definition(
    x: Tensor, grad_out: Tensor, direction: Tensor, segment_ids: Tensor, *, segments: int
) -> Tensor:
    """Return <G_i, V>: [segments], or [K, segments] for K directions."""
    return segment_sum_definition(grad_dot_tokens_definition(x, grad_out, direction), segment_ids, segments=segments)


def pairwise_grad_dot_definition(x: Tensor, grad_out: Tensor, segment_ids: Tensor, *, segments: int) -> Tensor:
    """Return <G_i, G_j>: [segments, segments]."""
    gradients = segment_gradients_definition(x, grad_out, segment_ids, segments=segments).flatten(1)
    return gradients @ gradients.t()


def grad_dot_prefix_definition(
    x: Tensor, grad_out: Tensor, direction: Tensor, boundaries: Sequence[int], *, accumulator: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return (<G_i, V>, accumulator + sum_i G_i) where segment i is the tokens [boundaries[i], boundaries[i+1])."""
    x, grad_out, direction = precise(x), precise(grad_out), precise(direction)
    # Cloned: the op writes into the accumulator that it is given, and a test compares both.
    total = x.new_zeros(direction.shape[-2:]) if accumulator is None else accumulator.clone()
    scores = []
    for start, end in pairwise(boundaries):
        gradient = grad_out[start:end].t() @ x[start:end]
        scores.append((gradient * direction).sum((-2, -1)))
        total += gradient
    return torch.stack(scores, -1), total


def bias_dot_definition(grad_out: Tensor, direction: Tensor, segment_ids: Tensor, *, segments: int) -> Tensor:
    """<gradient of segment i, v> for y_t = ... + bias: v [O] or [K, O]."""
    tokens = (precise(grad_out) * precise(direction)[..., None, :]).sum(-1)
    return segment_sum_definition(tokens, segment_ids, segments=segments)


def scale_dot_definition(
    normalised: Tensor, grad_out: Tensor, direction: Tensor, segment_ids: Tensor, *, segments: int
) -> Tensor:
    """<gradient of segment i, v> for y_t = scale * normalised_t, elementwise: v [H] or [K, H]."""
    return bias_dot_definition(precise(grad_out) * precise(normalised), direction, segment_ids, segments=segments)


def embedding_dot_definition(
    grad_rows: Tensor, token_ids: Tensor, direction: Tensor, segment_ids: Tensor, *, segments: int
) -> Tensor:
    """<gradient of segment i, V> for y_t = table[token_t]: V [vocabulary, H] or [K, vocabulary, H]."""
    tokens = (precise(grad_rows) * precise(direction)[..., token_ids, :]).sum(-1)
    return segment_sum_definition(tokens, segment_ids, segments=segments)
