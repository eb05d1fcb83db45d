"""The row kernels in Triton: on blocks of fp32 products that lie in memory. Contract: `types.Kernels`.

One program owns one token's row, or WIDTH entries of it; nothing is added to memory by two programs. Norms read a row
once; slopes read a row of each model's and write one.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from synpro_kernels.common.launch import Call, ceil_div
from synpro_kernels.ops.linear_distill.types import Norms, Slopes

_OPTIONS = {"WIDTH": 4096, "num_warps": 8}  # entries of a row that a program holds at once: 16 for each thread


@triton.jit
def norms_kernel(
    block, column, start, maximum, tempered, sumexp, target_logit, count, inverse_temperature,
    BOTH: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Fold one token's row of `count` logits into its norms."""
    row = tl.program_id(0)
    values = block + row.to(tl.int64) * count
    one = row + tl.arange(0, 1)  # the norms of a tile of one token
    top, cool, plain = tl.load(maximum + one), tl.load(tempered + one), tl.load(sumexp + one)
    for at in range(0, count, WIDTH):
        columns = at + tl.arange(0, WIDTH)
        z = tl.load(values + columns, mask=columns < count, other=-float("inf"))[None, :]
        # A maximum drops NaN here; it still reaches the sums.
        now = tl.maximum(top, tl.max(z, 1))
        origin = tl.where(now == -float("inf"), 0.0, now)  # everything masked so far: an empty sum
        shift = tl.where(top == -float("inf"), 0.0, top - origin)  # a sum of 0 may be moved by any
        shifted = z - origin[:, None]
        cool = cool * tl.exp(shift * inverse_temperature) + tl.sum(tl.exp(shifted * inverse_temperature), 1)
        if BOTH:
            plain = plain * tl.exp(shift) + tl.sum(tl.exp(shifted), 1)
        top = now
    tl.store(maximum + one, top)
    tl.store(tempered + one, cool)
    if BOTH:
        tl.store(sumexp + one, plain)
    place = tl.load(column + row) - start
    if (place >= 0) & (place < count):
        # A plain store: of all blocks' and ranks' columns one at most is the target, and the start is 0.
        tl.store(target_logit + row, tl.load(values + place))


@triton.jit
def mix_kernel(block, teacher, into, count, inverse_temperature, FIRST: tl.constexpr, WIDTH: tl.constexpr):
    """Add a teacher's probabilities of WIDTH entries of one token, times their factor, to `into`."""
    row = tl.program_id(0)
    columns = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    inside, at = columns < count, row.to(tl.int64) * count + columns
    maximum, scale = tl.load(teacher + row * 3), tl.load(teacher + row * 3 + 1)
    logits = tl.load(block + at, mask=inside, other=0.0)
    part = tl.exp((logits - maximum) * inverse_temperature) * scale
    if not FIRST:
        part += tl.load(into + at, mask=inside, other=0.0)
    tl.store(into + at, part, mask=inside)


@triton.jit
def differentiate_kernel(
    block, taught, others, out, student, teacher, column, start, divergence, count, inverse_temperature, pull, label,
    OTHERS: tl.constexpr, TEMPERED: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Turn WIDTH logits of one token into the loss's slopes, and leave their part of the divergence."""
    row, piece = tl.program_id(0), tl.program_id(1)
    columns = piece * WIDTH + tl.arange(0, WIDTH)
    inside, at = columns < count, row.to(tl.int64) * count + columns
    place = tl.load(column + row) - start
    maximum, log_tempered = tl.load(student + row * 4), tl.load(student + row * 4 + 1)
    of_tempered, of_plain = tl.load(student + row * 4 + 2), tl.load(student + row * 4 + 3)
    taught_maximum, scale = tl.load(teacher + row * 3), tl.load(teacher + row * 3 + 1)
    # What lies outside arrives as -inf, of which no teacher expects anything.
    log_q = (tl.load(taught + at, mask=inside, other=-float("inf")) - taught_maximum) * inverse_temperature
    q = tl.exp(log_q) * scale
    if OTHERS:
        q += tl.load(others + at, mask=inside, other=0.0)
        log_q = tl.log(q)
    else:
        log_q += tl.load(teacher + row * 3 + 2)
    z = tl.load(block + at, mask=inside, other=-float("inf")) - maximum
    tempered = z * inverse_temperature
    # 0 log 0 is 0; NaN is not 0, and shows.
    terms = tl.where(q == 0.0, 0.0, q * (log_q - (tempered - log_tempered)))
    tl.store(divergence + row * tl.num_programs(1) + piece, tl.sum(terms, 0))
    if TEMPERED:
        slope = tl.exp(tempered) * of_tempered + tl.exp(z) * of_plain
    else:
        slope = tl.exp(z) * (of_tempered + of_plain)
    slope = slope - pull * q - tl.where(columns == place, label, 0.0)
    tl.store(out + at, slope.to(out.dtype.element_ty), mask=inside)


def norms_(
    block_CB: Tensor, norms: Norms, column_C: Tensor, start: int, inverse_temperature: float, both: bool
) -> None:
    """Fold a block's logits into `norms`, in place; the block stays as it is."""
    # A token's norms belong to one program, so they are updated in place without atomics.
    norms_call(block_CB, norms, column_C, start, inverse_temperature, both).launch()


def mix_(block_CB: Tensor, teacher_C3: Tensor, into_CB: Tensor, inverse_temperature: float, first: bool) -> None:
    """Add a teacher's part of the mean to `into_CB`, or write it there."""
    mix_call(block_CB, teacher_C3, into_CB, inverse_temperature, first).launch()


def differentiate(
    block_CB: Tensor, taught_CB: Tensor, others_CB: Tensor | None, student_C4: Tensor, teacher_C3: Tensor,
    column_C: Tensor, start: int, slopes: Slopes, divergence_C: Tensor, dtype: torch.dtype,
) -> Tensor:  # fmt: skip
    """The loss's slope by each logit as `dtype`; the block's part of the divergence is added."""
    call = differentiate_call(block_CB, taught_CB, others_CB, student_C4, teacher_C3, column_C, start, slopes, dtype)
    slope_CB, parts_CP = call.launch()
    divergence_C += parts_CP.sum(1)
    return slope_CB


def norms_call(
    block_CB: Tensor, norms: Norms, column_C: Tensor, start: int, inverse_temperature: float, both: bool
) -> Call:
    """The launch that `norms_` makes."""
    tokens, count = block_CB.shape
    arguments = (block_CB, column_C, start, *norms, count, inverse_temperature)
    return Call(norms_kernel, (tokens,), arguments, _OPTIONS | {"BOTH": both}, tuple(norms))


def mix_call(block_CB: Tensor, teacher_C3: Tensor, into_CB: Tensor, inverse_temperature: float, first: bool) -> Call:
    """The launch that `mix_` makes."""
    arguments = (block_CB, teacher_C3, into_CB, block_CB.shape[1], inverse_temperature)
    return Call(mix_kernel, _pieces(block_CB), arguments, _OPTIONS | {"FIRST": first}, (into_CB,))


def differentiate_call(
    block_CB: Tensor, taught_CB: Tensor, others_CB: Tensor | None, student_C4: Tensor, teacher_C3: Tensor,
    column_C: Tensor, start: int, slopes: Slopes, dtype: torch.dtype,
) -> Call:  # fmt: skip
    """The launch that `differentiate` makes: the slopes, and the divergence's parts [C, P] in fp32."""
    # In place is safe although programs share a row: each reads the WIDTH entries that it writes, and no others.
    out_CB = block_CB if block_CB.dtype == dtype else torch.empty_like(block_CB, dtype=dtype)
    parts_CP = block_CB.new_empty(_pieces(block_CB))
    arguments = (
        block_CB, taught_CB, others_CB, out_CB, student_C4, teacher_C3, column_C, start, parts_CP, block_CB.shape[1],
        slopes.inverse_temperature, slopes.pull, slopes.label,
    )  # fmt: skip
    options = _OPTIONS | {"OTHERS": others_CB is not None, "TEMPERED": slopes.tempered}
    return Call(differentiate_kernel, _pieces(block_CB), arguments, options, (out_CB, parts_CP))


def _pieces(block_CB: Tensor) -> tuple[int, int]:
    return block_CB.shape[0], ceil_div(block_CB.shape[1], _OPTIONS["WIDTH"])
