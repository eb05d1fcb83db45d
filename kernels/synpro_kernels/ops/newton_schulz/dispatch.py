"""The backends of the symmetric product. `common.dispatch` chooses among them.

In PyTorch on the CPU strips of rows leave out what lies above the diagonal; on CUDA it is one batched product, of which
the Triton kernel does half. All else in the iteration is one library product a step.
"""

from collections.abc import Callable

from torch import Tensor

from synpro_kernels.common.dispatch import Backends
from synpro_kernels.ops.newton_schulz import torch_backend

Symmetric = Callable[[Tensor, Tensor | None, float, float, bool], Tensor]
"""(left_BMK, addend_BMM, alpha, beta, wide): alpha left left^T + beta addend, [B, M, M], in left's dtype or wide."""


def _triton() -> Symmetric:
    from synpro_kernels.ops.newton_schulz import triton_symmetric

    return triton_symmetric.symmetric_product


# fp32 goes to cuBLAS with the user's TF32 choice.
SYMMETRIC: Backends[Symmetric] = Backends(torch=torch_backend.symmetric_product, triton=_triton)
