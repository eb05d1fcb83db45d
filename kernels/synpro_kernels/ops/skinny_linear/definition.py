"""What the op computes: the oracle of its backends. No validation; may be differentiated."""

from torch import Tensor

from synpro_kernels.common.arithmetic import precise


def skinny_linear_definition(x: Tensor, weight_NK: Tensor, bias_N: Tensor | None = None) -> Tensor:
    """x W^T + b, [..., N] in fp32 (fp64 for fp64)."""
    product = precise(x) @ precise(weight_NK).mT
    return product if bias_N is None else product + precise(bias_N)
