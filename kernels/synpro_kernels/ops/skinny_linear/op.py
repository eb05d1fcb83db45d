"""The public entry `skinny_linear`.

Shape suffixes: N outputs, K inputs.
"""

import torch
from torch import Tensor

from synpro_kernels.common.arithmetic import FLOATS
from synpro_kernels.ops.skinny_linear import torch_backend
from synpro_kernels.ops.skinny_linear.dispatch import MOST_ROWS, SKINNY


def skinny_linear(x: Tensor, weight_NK: Tensor, bias_N: Tensor | None = None, *, wide: bool = False) -> Tensor:
    """x W^T + b, fast for a few rows of x.

    On the CPU up to 64 rows of fp32 or bf16 go to C++, which reads the weights once, where they lie, and in which a
    row's result depends on no other row; all else, and what wants gradients, to PyTorch.

    Args:
        x: [..., K], fp16, bf16, fp32 or fp64.
        weight_NK: in x's dtype; read in place where its rows lie one behind another.
        bias_N: in x's dtype, or None.
        wide: give the fp32 sums of halves as they are.

    Returns:
        [..., N] in x's dtype, or fp32 where it is `wide` and x of halves. Sums are fp32 (fp64 for fp64).

    Raises:
        ValueError: naming the argument and what was expected.

    """
    _check(x, weight_NK, bias_N)
    many = x.numel() > MOST_ROWS * x.shape[-1]
    if many or not weight_NK.is_contiguous() or (torch.is_grad_enabled() and _wants_gradient(x, weight_NK, bias_N)):
        return torch_backend.linear(x, weight_NK, bias_N, wide)
    return SKINNY.kernels(x)(x, weight_NK, bias_N, wide)


def _wants_gradient(*tensors: Tensor | None) -> bool:
    return any(tensor is not None and tensor.requires_grad for tensor in tensors)


def _check(x: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    if weight.dim() != 2 or weight.dtype not in FLOATS:
        raise ValueError(f"weight_NK: expected floating [N, K], got {weight.dtype} {list(weight.shape)}")
    if x.dim() < 1 or x.shape[-1] != weight.shape[1] or x.dtype != weight.dtype:
        raise ValueError(
            f"x: expected [..., {weight.shape[1]}] in the weight's {weight.dtype}, got {x.dtype} {list(x.shape)}"
        )
    if bias is not None and (bias.shape != weight.shape[:1] or bias.dtype != weight.dtype):
        raise ValueError(
            f"bias_N: expected [{weight.shape[0]}] in the weight's {weight.dtype}, got {bias.dtype} {list(bias.shape)}"
        )
