"""One tile of a matrix product on the tensor cores, in fp32: the main loop that the kernels here share.

The left operand is [M, R]; the right one [K, N, R] ("NR") or [K, R, N], of which one k is multiplied. Both are read
through tensor descriptors (TMA, from sm_90 on) or through pointers. Callers state `tl.assume(reduction > 0)`: where the
loop might not run at all, ptxas 12.8 waits for every wgmma before it issues the next one.
"""

import triton
import triton.language as tl


@triton.jit
def tile_by_descriptor(
    left, right, k, row0, col0, reduction, NR: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr
):
    """left[row0 : row0 + BM] right[k, col0 : col0 + BN]^T (without ^T unless NR); what lies outside is read as 0."""
    acc = tl.zeros((BM, BN), tl.float32)
    for r in range(0, reduction, BK):
        a = left.load([row0, r])
        if NR:
            b = right.load([k, col0, r]).reshape(BN, BK).T
        else:
            b = right.load([k, r, col0]).reshape(BK, BN)
        acc = tl.dot(a, b, acc)
    return acc


@triton.jit
def tile_by_pointer(
    left, right, row0, col0, rows_end, cols_end, reduction, stride_left, stride_right,
    NR: tl.constexpr, EVEN: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """The same with `right` at its k. Rows outside repeat the last one. EVEN: BK divides the reduction."""
    # Clamped rather than masked: the loop's loads need no mask over rows, and callers drop what comes of these rows.
    rows = tl.minimum(row0 + tl.arange(0, BM), rows_end - 1).to(tl.int64)
    cols = col0 + tl.arange(0, BN)
    rs = tl.arange(0, BK)
    a_ptr = left + rows[:, None] * stride_left + rs[None, :]
    if NR:
        # Columns are rows of `right` here, so they clamp too; in the other layout they lie along a row and are masked.
        b_ptr = right + tl.minimum(cols, cols_end - 1).to(tl.int64)[None, :] * stride_right + rs[:, None]
    else:
        b_ptr = right + rs[:, None].to(tl.int64) * stride_right + cols[None, :]
    acc = tl.zeros((BM, BN), tl.float32)
    for r in range(0, reduction, BK):
        if EVEN and NR:
            b = tl.load(b_ptr)
        elif EVEN:
            b = tl.load(b_ptr, mask=cols[None, :] < cols_end, other=0.0)
        else:
            b = tl.load(b_ptr, mask=(rs[:, None] < reduction - r) & (cols[None, :] < cols_end), other=0.0)
        if EVEN:
            a = tl.load(a_ptr)
        else:
            a = tl.load(a_ptr, mask=rs[None, :] < reduction - r, other=0.0)
        acc = tl.dot(a, b, acc)
        a_ptr += BK
        b_ptr += BK if NR else BK * stride_right
    return acc
