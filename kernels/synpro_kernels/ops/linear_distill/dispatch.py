"""The backends of linear_distill's row kernels. `common.dispatch` chooses among them."""

from synpro_kernels.common.dispatch import UP_TO_FP32, Backends
from synpro_kernels.ops.linear_distill import csrc_rows, torch_rows
from synpro_kernels.ops.linear_distill.types import Kernels


def _triton() -> Kernels:
    from synpro_kernels.ops.linear_distill import triton_rows

    return Kernels(triton_rows.norms_, triton_rows.mix_, triton_rows.differentiate)


_TORCH = Kernels(torch_rows.norms_, torch_rows.mix_, torch_rows.differentiate)
_CSRC = Kernels(csrc_rows.norms_, csrc_rows.mix_, csrc_rows.differentiate)

# Rows alone: the products are made by cuBLAS, so that GPUs without tiles of ours have these kernels too.
LINEAR_DISTILL = Backends(
    torch=_TORCH, csrc=lambda: _CSRC, triton=_triton, triton_dtypes=UP_TO_FP32, triton_multiplies=False
)
