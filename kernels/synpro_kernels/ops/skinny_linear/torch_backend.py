"""The product in PyTorch; differentiable. Shape suffixes as in `op`."""

import torch
import torch.nn.functional as F
from torch import Tensor

from synpro_kernels.common.arithmetic import HALVES, mm, wide_mm

# Weight rows turned to fp32 at once on the CPU: all of a vocabulary's would take twice the memory of the weight.
_ROWS = 16384


def linear(x: Tensor, weight_NK: Tensor, bias_N: Tensor | None, wide: bool) -> Tensor:
    """Return [..., N]; see `skinny_linear`."""
    if not wide or x.dtype not in HALVES:
        return F.linear(x, weight_NK, bias_N)
    # The product with a dtype of its own for its result has no gradient.
    wants_gradient = torch.is_grad_enabled() and (x.requires_grad or weight_NK.requires_grad)
    if x.is_cuda and wide_mm() and not wants_gradient:
        product = mm(x.flatten(0, -2), weight_NK.T).unflatten(0, x.shape[:-1])
    else:
        x = x.float()
        product = torch.cat([F.linear(x, rows.float()) for rows in weight_NK.split(_ROWS)], -1)
    return product if bias_N is None else product + bias_N
