"""The backends of the skinny product, and for how many rows C++ has it. `common.dispatch` chooses among them."""

from collections.abc import Callable

import torch
from torch import Tensor

from synpro_kernels.common.dispatch import Backends
from synpro_kernels.ops.skinny_linear import torch_backend

Product = Callable[[Tensor, Tensor, Tensor | None, bool], Tensor]
"""(x, weight_NK, bias_N, wide): [..., N]."""

MOST_ROWS = 64
"""Beyond it a product is a large one, which libraries compute at their best."""


def _csrc(x: Tensor, weight_NK: Tensor, bias_N: Tensor | None, wide: bool) -> Tensor:
    rows = x.reshape(-1, x.shape[-1]).contiguous()
    # Called as a plain operator: it has no autograd formula, and `op` lets no gradient come here.
    out = torch.ops.synpro_csrc.skinny_linear(rows, weight_NK, None if bias_N is None else bias_N.float())
    return (out if wide else out.to(x.dtype)).view(*x.shape[:-1], len(weight_NK))


SKINNY: Backends[Product] = Backends(
    torch=torch_backend.linear, csrc=lambda: _csrc, csrc_dtypes=(torch.bfloat16, torch.float32)
)
