"""The backends of the ops here. `common.dispatch` chooses among them.

Low-rank directions and the closed forms have one each, in PyTorch: two thin products, or a pass over memory.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from synpro_kernels.common.dispatch import Backends
from synpro_kernels.ops.grad_dot import torch_backend

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


class _TritonOps(NamedTuple):
    token_dots: TokenDots
    prefix: Prefix
    pairs: Pairs
    segment_sum: SegmentSum


def _triton() -> _TritonOps:
    from synpro_kernels.ops.grad_dot import triton_pairs, triton_prefix, triton_rows, triton_segments

    return _TritonOps(
        triton_rows.grad_dot_tokens,
        triton_prefix.grad_dot_prefix,
        triton_pairs.pairwise_grad_dot,
        triton_segments.segment_sum,
    )


def _csrc_formed(gradient: Tensor, direction: Tensor) -> Tensor:
    # The gradient is reshaped, which copies at need; of K directions that copy would be K times as large.
    if not direction.is_contiguous():  # C++ reads both as runs of memory
        return torch_backend.formed_dot(gradient, direction)
    return torch.ops.synpro_csrc.formed_dot(gradient.reshape(-1), direction.flatten(1))


# Triton takes a second to import and may be missing, so it is loaded where a tensor goes there.
# It takes halves alone where it multiplies: fp32 goes to cuBLAS with the user's TF32 choice.
GRAD_DOT: Backends[TokenDots] = Backends(
    torch=torch_backend.grad_dot_tokens,
    csrc=lambda: torch.ops.synpro_csrc.grad_dot_tokens,
    triton=lambda: _triton().token_dots,
)
PREFIX: Backends[Prefix] = Backends(
    torch=torch_backend.grad_dot_prefix,
    csrc=lambda: torch.ops.synpro_csrc.grad_dot_prefix,
    triton=lambda: _triton().prefix,
)
PAIRS: Backends[Pairs] = Backends(torch=torch_backend.pairwise_grad_dot, triton=lambda: _triton().pairs)
# What it sums are token dots, which are fp32 whatever was multiplied.
SEGMENT_SUM: Backends[SegmentSum] = Backends(
    torch=torch_backend.segment_sum,
    triton=lambda: _triton().segment_sum,
    triton_dtypes=(torch.float32,),
    triton_multiplies=False,
)
FORMED: Backends[Formed] = Backends(
    torch=torch_backend.formed_dot, csrc=lambda: _csrc_formed, csrc_dtypes=(torch.float32,)
)
