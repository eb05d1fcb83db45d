"""Inner products of per-segment gradients with directions and with each other, without forming a gradient.

`grad_dot` and `pairwise_grad_dot` take a linear layer's input and output gradient; `grad_dot_prefix` scores on the way
through the weight-gradient GEMM; the closed forms cover biases, scales and embeddings. The maths is in README.md here.
"""

from synpro_kernels.ops.grad_dot.closed_forms import bias_dot, embedding_dot, scale_dot
from synpro_kernels.ops.grad_dot.definition import (
    bias_dot_definition,
    embedding_dot_definition,
    grad_dot_definition,
    grad_dot_prefix_definition,
    pairwise_grad_dot_definition,
    scale_dot_definition,
)
from synpro_kernels.ops.grad_dot.directions import low_rank, to_fp8
from synpro_kernels.ops.grad_dot.op import grad_dot, pairwise_grad_dot
from synpro_kernels.ops.grad_dot.segments import segment_sum
from synpro_kernels.ops.grad_dot.types import Direction, Fp8Direction, GradDots, LowRankDirection
from synpro_kernels.ops.grad_dot.weight_gradient import formed_dot, grad_dot_prefix

__all__ = [
    "grad_dot",
    "grad_dot_definition",
    "GradDots",
    "pairwise_grad_dot",
    "pairwise_grad_dot_definition",
    "grad_dot_prefix",
    "grad_dot_prefix_definition",
    "formed_dot",
    "bias_dot",
    "bias_dot_definition",
    "scale_dot",
    "scale_dot_definition",
    "embedding_dot",
    "embedding_dot_definition",
    "segment_sum",
    "Direction",
    "LowRankDirection",
    "Fp8Direction",
    "low_rank",
    "to_fp8",
]
