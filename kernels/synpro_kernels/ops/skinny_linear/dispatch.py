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


# C++ is called as a plain operator: it has no autograd formula, and `op` lets no gradient come to it.
SKINNY: Backends[Product] = Backends(
    torch=torch_backend.linear,
    csrc=lambda: torch.ops.synpro_csrc.skinny_linear,
    csrc_dtypes=(torch.bfloat16, torch.float32),
)
