"""The backends of the ops here. `common.dispatch` chooses among them.

Low-rank directions and the closed forms have one each, in PyTorch: two thin products, or a pass over memory.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from synpro_kernels.common.dispatch import Backends
from synpro_kernels.ops.grad_dot import torch_formed, torch_pairs, torch_prefix, torch_rows, torch_segments

TokenDots = Callable[[Tensor, Tensor, Tensor, Tensor | None, bool], Tensor]
"""(x_TI, grad_TO, direction_KOI, scale_KO, over_inputs): b_t . (V x_t) of every direction and token, [K, T]."""
Prefix = Callable[[Tensor, Tensor, Tensor, Sequence[int], Tensor], Tensor]
"""(x_TI, grad_TO, direction_KOI, boundaries, accumulator_OI): scores [K, S]; the accumulator is added to."""
Pairs = Callable[[Tensor, Tensor, Tensor, int], Tensor]
"""(x_TI, grad_TO, ids_T, segments): [S, S]."""
SegmentSum = Callable[[Tensor, Tensor, int], Tensor]
"""(values_KT, ids_T, segments): [K, S]."""
Formed = Callable[[Tensor, Tensor], Tensor]
"""(gradient [P, ...], direction [K, P, ...]): fp64 [K]."""


def _triton_rows() -> TokenDots:
    from synpro_kernels.ops.grad_dot import triton_rows

    return triton_rows.grad_dot_tokens


def _triton_prefix() -> Prefix:
    from synpro_kernels.ops.grad_dot import triton_prefix

    return triton_prefix.grad_dot_prefix


def _triton_pairs() -> Pairs:
    from synpro_kernels.ops.grad_dot import triton_pairs

    return triton_pairs.pairwise_grad_dot


def _triton_segments() -> SegmentSum:
    from synpro_kernels.ops.grad_dot import triton_segments

    return triton_segments.segment_sum


def _csrc_formed(gradient: Tensor, direction: Tensor) -> Tensor:
    if not direction.is_contiguous():  # C++ reads both as runs of memory
        return torch_formed.formed_dot(gradient, direction)
    return torch.ops.synpro_csrc.formed_dot(gradient.reshape(-1), direction.flatten(1))


# Triton takes halves alone where it multiplies: fp32 goes to cuBLAS with the user's TF32 choice.
GRAD_DOT: Backends[TokenDots] = Backends(
    torch=torch_rows.grad_dot_tokens, csrc=lambda: torch.ops.synpro_csrc.grad_dot_tokens, triton=_triton_rows
)
PREFIX: Backends[Prefix] = Backends(
    torch=torch_prefix.grad_dot_prefix, csrc=lambda: torch.ops.synpro_csrc.grad_dot_prefix, triton=_triton_prefix
)
PAIRS: Backends[Pairs] = Backends(torch=torch_pairs.pairwise_grad_dot, triton=_triton_pairs)
# What it sums are token dots, which are fp32 whatever was multiplied.
SEGMENT_SUM: Backends[SegmentSum] = Backends(
    torch=torch_segments.segment_sum,
    triton=_triton_segments,
    triton_dtypes=(torch.float32,),
    triton_multiplies=False,
)
FORMED: Backends[Formed] = Backends(
    torch=torch_formed.formed_dot, csrc=lambda: _csrc_formed, csrc_dtypes=(torch.float32,)
)
