"""The products of an iteration in PyTorch. A CPU multiplies bf16 as it is where it has tiles for it (AMX).

Other halves are multiplied as fp32 on the CPU. Either way sums are fp32 and rounded once, at the end.

Shapes: B matrices of M x K with M <= K, as a rule.
"""

import torch
from torch import Tensor

from synpro_kernels.common.arithmetic import HALVES, operand, precise_dtype
from synpro_kernels.common.pieces import pieces

# Rows of a strip on the CPU. Below one strip nothing is saved; the shorter they are the less is done above the diagonal
# and the slower the products become: at 2048 x 2048 0.60 of the whole product's time with 256 rows, 0.73 with 192.
_STRIP = 256
# Whether this CPU has AMX: bf16 then multiplies at some six times the speed of fp32, else at less than it. Asked once,
# here, because a compiled graph takes a constant. Underscored in torch and may go: fp32 is right then, and slower.
_BF16_TILES = bool(getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)())


def symmetric_product(left_BMK: Tensor, addend_BMM: Tensor | None, alpha: float, beta: float, wide: bool) -> Tensor:
    """Return alpha left left^T + beta addend, [B, M, M]; see `dispatch.Symmetric`."""
    dtype = precise_dtype(left_BMK.dtype) if wide else left_BMK.dtype
    # In fp32 where the result is: a library's product of halves on CUDA rounds to halves.
    left = left_BMK.float() if wide and left_BMK.dtype in HALVES else _factor(left_BMK)
    addend = None if addend_BMM is None else addend_BMM.to(left.dtype)
    # Halves on tiles are quicker whole: a product is over before the copies of a strip are.
    if left.device.type == "cpu" and left.shape[1] > _STRIP and left.dtype not in HALVES:
        return _by_strips(left, addend, alpha, beta).to(dtype)
    if addend is None:
        product = left @ left.mT
        return (product if alpha == 1 else product.mul_(alpha)).to(dtype)
    return torch.baddbmm(addend, left, left.mT, beta=beta, alpha=alpha).to(dtype)


def _by_strips(left_BMK: Tensor, addend_BMM: Tensor | None, alpha: float, beta: float) -> Tensor:
    """The rows of each strip times those up to its end; what lies above the diagonal is a copy."""
    batch, rows, _ = left_BMK.shape
    out_BMM = left_BMK.new_empty(batch, rows, rows)
    for index, (left, out) in enumerate(zip(left_BMK, out_BMM, strict=True)):
        for strip in pieces(rows, _STRIP):
            until = slice(0, strip.stop)
            to = out[strip, until]
            if addend_BMM is None:
                torch.mm(left[strip], left[until].t(), out=to)
                to.mul_(alpha)
            else:
                addend = addend_BMM[index, strip, until]
                torch.addmm(addend, left[strip], left[until].t(), beta=beta, alpha=alpha, out=to)
            out[: strip.start, strip] = out[strip, : strip.start].t()
    return out_BMM


def scaled_sum(x_BMK: Tensor, factor_BMM: Tensor, a: float) -> Tensor:
    """Return a x + factor x in x's dtype, rounded once."""
    x = _factor(x_BMK)
    return torch.baddbmm(x, _factor(factor_BMM), x, beta=a).to(x_BMK.dtype)


def _factor(tensor: Tensor) -> Tensor:
    """What products multiply: fp32 copies of halves on CPUs that have no tiles for them, else the tensor."""
    on_tiles = tensor.dtype == torch.bfloat16 and tensor.device.type == "cpu" and _BF16_TILES
    return tensor if on_tiles else operand(tensor)
