"""How kernels are tested, with a GPU or without one. Importing this package loads torch alone.

`accuracy` compares with fp64 by tolerances that calibrate themselves; `harness` makes ops take one backend, makes
forgotten outputs visible and measures what a call takes. Two modules need Triton and are imported by their own names:
`interpreter` mends bf16 under TRITON_INTERPRET=1, and `compile_only` turns kernels into machine code for GPUs that are
not there and reads what they take. These two cannot share a process, because Triton decides at decoration whether a
kernel is interpreted.
"""

from synpro_kernels.testing.accuracy import assert_as_accurate
from synpro_kernels.testing.harness import nan_filled_empty, peak_growth, using

__all__ = ["assert_as_accurate", "nan_filled_empty", "peak_growth", "using"]
