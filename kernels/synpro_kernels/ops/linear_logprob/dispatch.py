"""The backends of linear_logprob. `common.dispatch` chooses among them."""

from synpro_kernels.common.dispatch import UP_TO_FP32, Backends
from synpro_kernels.ops.linear_logprob import block_sizes, csrc_rows, torch_rows
from synpro_kernels.ops.linear_logprob.types import FusedKernels, Kernels


def _triton() -> Kernels:
    from synpro_kernels.ops.linear_logprob import triton_gemm, triton_rows

    return Kernels(
        merge_=triton_rows.merge_,
        differentiate=triton_rows.differentiate,
        block_shape=block_sizes.whole_columns,
        fused=FusedKernels(triton_gemm.stats, triton_gemm.differentiate),
    )


_TORCH = Kernels(torch_rows.merge_, torch_rows.differentiate, block_sizes.by_device)
_CSRC = Kernels(csrc_rows.merge_, csrc_rows.differentiate, block_sizes.in_cache)

# fp32 too, unlike in grad_dot: the kernels multiply it exactly ("ieee"), whatever the user's TF32 choice.
LINEAR_LOGPROB = Backends(torch=_TORCH, csrc=lambda: _CSRC, triton=_triton, triton_dtypes=UP_TO_FP32)
