"""alpha L L^T + beta C on CUDA: one program for each tile on or below the diagonal, which it also writes mirrored.

So half of the products of a library's GEMM are left out. Half-precision operands only, fp32 sums, and no atomics: two
runs give the same bits. Shapes: B matrices, L is [B, M, K], C and the result [B, M, M].
"""

import functools

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from synpro_kernels.common.launch import Call, aligned, capability_of, ceil_div
from synpro_kernels.common.triton_products import tile_by_descriptor, tile_by_pointer
from synpro_kernels.ops.newton_schulz import torch_backend
from synpro_kernels.ops.newton_schulz.tiles import symmetric_tile


@triton.jit
def symmetric_kernel(
    left, right, addend, out, first, second, tiles, rows, width, stride, alpha, beta,
    DESCRIPTOR: tl.constexpr, EVEN: tl.constexpr, ADDS: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """Tile (i, j) of matrix b, i >= j, to [b, i, j] and [b, j, i]; BM = BN."""
    # Without it ptxas 12.8 waits for each wgmma before it issues the next (see `triton_products`).
    tl.assume(width > 0)
    b, place = tl.program_id(0) // tiles, tl.program_id(0) % tiles
    i, j = tl.load(first + place), tl.load(second + place)
    if DESCRIPTOR:
        # All matrices are one tall one there: rows beyond a matrix are the next one's, and are not stored.
        acc = tile_by_descriptor(left, right, 0, b * rows + i * BM, b * rows + j * BN, width, True, BM, BN, BK)
    else:
        own = left + b.to(tl.int64) * rows * stride
        acc = tile_by_pointer(own, own, i * BM, j * BN, rows, rows, width, stride, stride, True, EVEN, BM, BN, BK)
    m, n = i * BM + tl.arange(0, BM), j * BN + tl.arange(0, BN)
    inside = (m < rows)[:, None] & (n < rows)[None, :]
    # 64 bits for the matrix; within one 32, which its side is held to (see `symmetric_product`).
    base = b.to(tl.int64) * rows * rows
    acc *= alpha
    if ADDS:
        acc += beta * tl.load(addend + base + m[:, None] * rows + n[None, :], mask=inside, other=0.0).to(tl.float32)
    tile = acc.to(out.dtype.element_ty)
    tl.store(out + base + m[:, None] * rows + n[None, :], tile, mask=inside)
    # One value, written twice: symmetric to the bit, as programs for both (i, j) and (j, i) need not be.
    if i != j:
        tl.store(out + base + n[None, :] * rows + m[:, None], tile, mask=inside)


def symmetric_product(left_BMK: Tensor, addend_BMM: Tensor | None, alpha: float, beta: float, wide: bool) -> Tensor:
    """Return [B, M, M] in left's dtype, or fp32 where `wide`."""
    batch, rows, _ = left_BMK.shape
    if rows * rows >= 2**31:  # offsets within a matrix are 32 bits: 64 cost registers, and such a side is beyond models
        return torch_backend.symmetric_product(left_BMK, addend_BMM, alpha, beta, wide)
    if batch == 0:
        return left_BMK.new_empty(0, rows, rows, dtype=torch.float32 if wide else left_BMK.dtype)
    call = symmetric_call(left_BMK, addend_BMM, alpha, beta, wide, capability=capability_of(left_BMK))
    return call.launch()[0]


def symmetric_call(
    left_BMK: Tensor, addend_BMM: Tensor | None, alpha: float, beta: float, wide: bool, *,
    capability: int, descriptor: bool | None = None,
) -> Call:  # fmt: skip
    """The launch that fills [B, M, M]; `descriptor` None chooses by capability."""
    left = aligned(left_BMK)
    batch, rows, width = left.shape
    # Rows of all matrices follow each other; a view of a larger tensor has gaps.
    left = left if left.is_contiguous() else left.contiguous()
    out_BMM = left.new_empty(batch, rows, rows, dtype=torch.float32 if wide else left.dtype)
    tile = symmetric_tile(capability, rows)
    side = ceil_div(rows, tile.BM)
    first, second = _lower_tiles(side, left.device)
    if descriptor is None:
        descriptor = capability >= 90
    flat = left.view(batch * rows, width)
    sources = flat, flat[None]
    if descriptor:
        blocks = [tile.BM, tile.BK], [1, tile.BN, tile.BK]
        sources = tuple(map(TensorDescriptor.from_tensor, sources, blocks))
    addend = out_BMM if addend_BMM is None else addend_BMM.contiguous()
    tiles = side * (side + 1) // 2
    arguments = *sources, addend, out_BMM, first, second, tiles, rows, width, left.stride(1), float(alpha), float(beta)
    options = {
        "DESCRIPTOR": descriptor,
        "EVEN": descriptor or width % tile.BK == 0,
        "ADDS": addend_BMM is not None,
        **tile._asdict(),
    }
    return Call(symmetric_kernel, (batch * tiles,), arguments, options, (out_BMM,))


@functools.lru_cache(maxsize=64)
def _lower_tiles(side: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Rows and columns of the tiles on or below the diagonal: a list, and no grid whose upper half returns at once.

    Kept, for small products are over before the host has made it anew; nobody writes to it.
    """
    first, second = torch.tril_indices(side, side, device=device, dtype=torch.int32)
    return first, second
