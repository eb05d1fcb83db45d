"""What the Triton kernels share: from products to logits, statistics and gradients, one tile at a time, in fp32.

A tile is [BM tokens, BN vocabulary entries]; vectors over tokens are [BM].
"""

import triton
import triton.language as tl

# Stands for log 0 where it meets a probability of 0 (0 * -inf would be NaN).
LOG_FLOOR = tl.constexpr(-1e4)
# Within the kernels logits are in bits, log2 e times themselves, and their exponentials powers of 2: `tl.exp` would
# multiply every entry by log2 e first, and take care of results below 2^-126. What leaves them is in nats.
LOG2_E = tl.constexpr(1.4426950408889634)
LN_2 = tl.constexpr(0.6931471805599453)


@triton.jit
def tanh(x):
    """Tanh, accurate relative to its value: a series near 0, where 1 - exp(-2|x|) would cancel."""
    square = x * x
    # At 0.25 the first term left out is 1e-8 of the value, less than fp32's unit in the last place (6e-8).
    series = x * (
        1.0 + square * (-1.0 / 3.0 + square * (2.0 / 15.0 + square * (-17.0 / 315.0 + square * (62.0 / 2835.0))))
    )
    # exp(-2|x|) cannot overflow. Written out: libdevice's tanh does not run in Triton's interpreter, which tests use.
    decay = tl.exp(-2.0 * tl.abs(x))
    far = (1.0 - decay) / (1.0 + decay)
    return tl.where(tl.abs(x) < 0.25, series, tl.where(x < 0, -far, far))


@triton.jit
def capped(products, bias, inverse_softcap, HAS_BIAS: tl.constexpr, HAS_SOFTCAP: tl.constexpr):
    """f(product + bias): tanh(. / softcap) or the identity. `bias` is a row of the tile."""
    if HAS_BIAS:
        products += bias[None, :]
    if HAS_SOFTCAP:
        products = tanh(products * inverse_softcap)
    return products


@triton.jit
def merge(z, maximum, sumexp, weighted, ENTROPY: tl.constexpr):
    """Fold a tile of logits in bits into (m, s, u): s = sum 2^(z-m), u = sum 2^(z-m) (z-m). Masked ones are -inf."""
    # A maximum drops NaN here; it still reaches the sums.
    top = tl.maximum(maximum, tl.max(z, 1))
    origin = tl.where(top == -float("inf"), 0.0, top)  # everything masked so far: an empty sum
    shifted = z - origin[:, None]
    e = tl.exp2(shifted)
    shift = maximum - origin
    shift = tl.where(shift < LOG_FLOOR, LOG_FLOOR, shift)
    decay = tl.exp2(shift)  # of what was summed around the old maximum
    if ENTROPY:
        floored = tl.where(shifted < LOG_FLOOR, LOG_FLOOR, shifted)
        # Before the sum is moved: u is taken around the new maximum by means of the old sum.
        weighted = decay * (weighted + sumexp * shift) + tl.sum(e * floored, 1)
    sumexp = decay * sumexp + tl.sum(e, 1)
    return top, sumexp, weighted


@triton.jit
def gradient(values, is_target, coefficients, rows, in_range, scale, HAS_SOFTCAP: tl.constexpr):
    """dL/dproduct of a tile from f(product + bias); `coefficients` points at [T, 5] (see `coefficients`), in nats.

    scale: to logits in bits.
    """
    # Read after the product, once for each half: five vectors of BM take no registers during its loop.
    at = coefficients + rows.to(tl.int64) * 5
    maximum = tl.load(at, mask=in_range, other=0.0) * LOG2_E
    inverse = tl.load(at + 1, mask=in_range, other=0.0)
    constant = tl.load(at + 2, mask=in_range, other=0.0)
    grad_entropy = tl.load(at + 3, mask=in_range, other=0.0) * LN_2
    grad_target = tl.load(at + 4, mask=in_range, other=0.0)
    shifted = values * scale - maximum[:, None]
    p = tl.exp2(shifted) * inverse[:, None]
    # A maximum drops NaN, which p has; a `where` is a predicate for each entry, of which there are too few.
    floored = tl.maximum(shifted, LOG_FLOOR)
    dz = p * (constant[:, None] - grad_entropy[:, None] * floored)
    dz += tl.where(is_target, grad_target[:, None], 0.0)
    if HAS_SOFTCAP:
        dz *= 1.0 - values * values
    return dz
