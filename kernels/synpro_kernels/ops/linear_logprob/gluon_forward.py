"""The statistics of `triton_gemm` for sm_90, by warps with roles: one loads, groups of them multiply and summarise.

In Triton's loop over the width each tile waits for its first operands, and the matrix units wait for its statistics.
Here one warp fills a ring of stages ahead of time, across tiles and pieces of work. One group of eight warps takes
tiles of 128 x 256, or two of four take tiles of 128 x 128 in turn: then the one's statistics run behind the other's
product, and a third more is read from L2.

No GPU has run it yet, so it is taken where SYNPRO_PERSISTENT names a form of it. Gluon has no interpreter: values and
the order at its barriers are tested by `testing.gluon_language`, which runs this source.
"""
# What stands under `gluon.jit` is Gluon, whose constants and tensors are told apart by its compiler.
# pyright: reportArgumentType=false, reportAssignmentType=false, reportCallIssue=false, reportGeneralTypeIssues=false
# pyright: reportOperatorIssue=false

from typing import NamedTuple

import torch
import triton
from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import mbarrier, tma, warpgroup_mma, warpgroup_mma_wait
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from synpro_kernels.common.launch import Call, ceil_div
from synpro_kernels.ops.linear_logprob import triton_math
from synpro_kernels.ops.linear_logprob.tiles import tiles_each_for
from synpro_kernels.ops.linear_logprob.types import Shard

if tuple(map(int, triton.__version__.split(".")[:2])) < (3, 6):
    raise ImportError(f"the persistent forward needs Triton 3.6 or later; here is {triton.__version__}")
LN_2 = triton_math.LN_2
# One source for both languages: Gluon compiles what is elementwise as Triton does.
merge = gluon.jit(triton_math.merge.fn)


class Warps(NamedTuple):
    """`GROUPS` of `num_warps` warps each multiply tiles of BM x BN, from a ring of STAGES of BK of the width."""

    GROUPS: int
    num_warps: int
    BM: int
    BN: int
    BK: int
    STAGES: int


FORMS = {
    "together": Warps(GROUPS=1, num_warps=8, BM=128, BN=256, BK=64, STAGES=4),
    "in-turn": Warps(GROUPS=2, num_warps=4, BM=128, BN=128, BK=64, STAGES=6),
}
"""Both hold 192 KiB of operands."""
_DTYPES = {torch.bfloat16: gl.bfloat16, torch.float16: gl.float16}


@gluon.jit
def tiles_of(item, work):
    """Row tile, split, first and last tile of the vocabulary (excluded) of a piece of work."""
    row_tiles, column_tiles, tiles_each, _ = work
    split = item // row_tiles
    first = split * tiles_each
    return item % row_tiles, split, first, gl.minimum(first + tiles_each, column_tiles)


@gluon.jit
def load(hidden, weight, ring, work, WIDTH: gl.constexpr):
    """Fill stages in the order in which the groups take them: all tiles of this program, one after the other."""
    hidden_ring, weight_ring, ready, empty, _turn = ring
    STAGES: gl.constexpr = hidden_ring.shape[0]
    BM: gl.constexpr = hidden_ring.shape[1]
    BK: gl.constexpr = hidden_ring.shape[2]
    BN: gl.constexpr = weight_ring.shape[1]
    step = 0
    for item in range(gl.program_id(0), work[3], gl.num_programs(0)):
        row_tile, _split, first, last = tiles_of(item, work)
        for tile in range(first, last):
            for k in range(0, WIDTH, BK):
                stage = step % STAGES
                # The phase before a barrier's first counts as over: stages are empty to begin with.
                mbarrier.wait(empty.index(stage), (step // STAGES & 1) ^ 1)
                mbarrier.expect(ready.index(stage), hidden.block_type.nbytes + weight.block_type.nbytes)
                tma.async_copy_global_to_shared(
                    hidden, [row_tile * BM, k], ready.index(stage), hidden_ring.index(stage)
                )
                tma.async_copy_global_to_shared(weight, [tile * BN, k], ready.index(stage), weight_ring.index(stage))
                step += 1


@gluon.jit
def multiply(number, group, ring, layout: gl.constexpr, WIDTH: gl.constexpr, GROUPS: gl.constexpr):
    """The products [BM, BN], fp32, of this program's tile of that number; a stage that has been read is given back."""
    hidden_ring, weight_ring, ready, empty, turn = ring
    STAGES: gl.constexpr = hidden_ring.shape[0]
    BM: gl.constexpr = hidden_ring.shape[1]
    BN: gl.constexpr = weight_ring.shape[1]
    STEPS: gl.constexpr = WIDTH // hidden_ring.shape[2]
    acc = gl.zeros((BM, BN), gl.float32, layout=layout)
    if GROUPS == 2:
        # A barrier knows phases by their parity alone: waiting for the next but one ends at once. So a group begins
        # to wait for its operands when the other has waited for all of the tile before.
        mbarrier.wait(turn.index(group), (number // 2 & 1) ^ (1 - group))
    for k in range(STEPS):
        step = number * STEPS + k
        stage = step % STAGES
        mbarrier.wait(ready.index(stage), step // STAGES & 1)
        acc = warpgroup_mma(hidden_ring.index(stage), weight_ring.index(stage).permute((1, 0)), acc, is_async=True)
        # This product is left to run; the one before it is over, and its stage may be filled again.
        acc = warpgroup_mma_wait(num_outstanding=1, deps=(acc,))
        mbarrier.arrive(empty.index((stage + STAGES - 1) % STAGES), pred=k > 0)
    if GROUPS == 2:
        mbarrier.arrive(turn.index(1 - group))
    acc = warpgroup_mma_wait(num_outstanding=0, deps=(acc,))
    mbarrier.arrive(empty.index((number * STEPS + STEPS - 1) % STAGES))
    return acc


@gluon.jit
def summarise(
    group, ring, column, parts, tokens, vocab, scale, work,
    WIDTH: gl.constexpr, GROUPS: gl.constexpr, ENTROPY: gl.constexpr,
):  # fmt: skip
    """Statistics of the tiles that are this group's, into rows of `parts` that no other program or group writes."""
    maximum, sumexp, weighted, target_logit = parts
    BM: gl.constexpr = ring[0].shape[1]
    BN: gl.constexpr = ring[1].shape[1]
    layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [gl.num_warps(), 1], [16, BN, 16])
    of_rows: gl.constexpr = gl.SliceLayout(1, layout)
    done = 0
    for item in range(gl.program_id(0), work[3], gl.num_programs(0)):
        row_tile, split, first, last = tiles_of(item, work)
        rows = row_tile * BM + gl.arange(0, BM, layout=of_rows)
        in_range = rows < tokens
        target = gl.load(column + rows, mask=in_range, other=-1).to(gl.int32)
        target = gl.where(target < vocab, target, -1)  # another shard's: never the column of the last, ragged tile
        m = gl.full((BM,), -float("inf"), gl.float32, layout=of_rows)
        s = gl.zeros((BM,), gl.float32, layout=of_rows)
        u = gl.zeros((BM,), gl.float32, layout=of_rows)
        at_target = gl.zeros((BM,), gl.float32, layout=of_rows)
        # Turns go on from one piece of work to the next, as the stages of the ring do.
        for tile in range(first + (group + GROUPS - done % GROUPS) % GROUPS, last, GROUPS):
            z = multiply(done + tile - first, group, ring, layout, WIDTH, GROUPS) * scale
            cols = tile * BN + gl.arange(0, BN, layout=gl.SliceLayout(0, layout))
            at_target += gl.sum(gl.where(cols[None, :] == target[:, None], z, 0.0), 1)
            z = gl.where(cols[None, :] < vocab, z, -float("inf"))
            m, s, u = merge(z, m, s, u, ENTROPY)
        done += last - first
        to = (split * GROUPS + group).to(gl.int64) * tokens + rows
        gl.store(maximum + to, m * LN_2, mask=in_range)
        gl.store(sumexp + to, s, mask=in_range)
        gl.store(weighted + to, u * LN_2, mask=in_range)
        gl.store(target_logit + to, at_target * LN_2, mask=in_range)


@gluon.jit
def stats_kernel(
    hidden, weight, column, maximum, sumexp, weighted, target_logit, tokens, vocab, scale, tiles_each, items,
    WIDTH: gl.constexpr, ENTROPY: gl.constexpr, GROUPS: gl.constexpr, num_warps: gl.constexpr,
    BM: gl.constexpr, BN: gl.constexpr, BK: gl.constexpr, STAGES: gl.constexpr,
):  # fmt: skip
    """Statistics of `items` pieces of work: a row tile and `tiles_each` tiles of the vocabulary each."""
    hidden_ring = gl.allocate_shared_memory(hidden.dtype, [STAGES, BM, BK], hidden.layout)
    weight_ring = gl.allocate_shared_memory(weight.dtype, [STAGES, BN, BK], weight.layout)
    ready = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    turn = gl.allocate_shared_memory(gl.int64, [2, 1], mbarrier.MBarrierLayout())
    for stage in gl.static_range(STAGES):
        mbarrier.init(ready.index(stage), count=1)
        mbarrier.init(empty.index(stage), count=1)
    for group in gl.static_range(2):
        mbarrier.init(turn.index(group), count=1)
    ring = (hidden_ring, weight_ring, ready, empty, turn)
    parts = (maximum, sumexp, weighted, target_logit)
    work = (gl.cdiv(tokens, BM), gl.cdiv(vocab, BN), tiles_each, items)
    # Constants stand in the lists themselves: a variable in between would make numbers of them. Registers are what one
    # thread of each role has, the first group's what is left: 240 of eight warps, 248 of four.
    if GROUPS == 1:
        gl.warp_specialize([
            (summarise, (0, ring, column, parts, tokens, vocab, scale, work, WIDTH, GROUPS, ENTROPY)),
            (load, (hidden, weight, ring, work, WIDTH)),
        ], [1], [24])  # fmt: skip
    else:
        gl.warp_specialize([
            (summarise, (0, ring, column, parts, tokens, vocab, scale, work, WIDTH, GROUPS, ENTROPY)),
            (summarise, (1, ring, column, parts, tokens, vocab, scale, work, WIDTH, GROUPS, ENTROPY)),
            (load, (hidden, weight, ring, work, WIDTH)),
        ], [num_warps, 1], [232, 24])  # fmt: skip


def named(form: str) -> Warps:
    """The form of that name. ValueError where there is none."""
    if form not in FORMS:
        raise ValueError(f"SYNPRO_PERSISTENT: {form!r} is none of {', '.join(FORMS)}")
    return FORMS[form]


def takes(shard: Shard, capability: int) -> bool:
    """Whether the kernel is made for this: sm_90, halves, whole stages of the width, no bias or cap, no small product.

    That rows of both operands lie on 16 bytes is for the caller to know.
    """
    plain = shard.bias_V is None and shard.settings.softcap is None
    whole = shard.hidden_TH.dtype in _DTYPES and shard.hidden_TH.shape[1] % 64 == 0
    return capability // 10 == 9 and plain and whole and shard.tokens > 64


def stats_call(shard: Shard, *, entropy: bool, processors: int, warps: Warps) -> Call:
    """The launch whose outputs are the parts of `Stats`, [splits * GROUPS, T], on a device of so many processors."""
    row_tiles, column_tiles = ceil_div(shard.tokens, warps.BM), ceil_div(shard.vocab, warps.BN)
    tiles_each = tiles_each_for(row_tiles, column_tiles, processors)
    splits = ceil_div(column_tiles, tiles_each)
    shape = 4, splits * warps.GROUPS, shard.tokens
    parts = shard.hidden_TH.new_empty(shape, dtype=torch.float32).unbind(0)
    operands = _described(shard.hidden_TH, warps.BM, warps.BK), _described(shard.weight_VH, warps.BN, warps.BK)
    sizes = shard.tokens, shard.vocab, shard.settings.scale_in_bits, tiles_each, row_tiles * splits
    options = {"WIDTH": shard.hidden_TH.shape[1], "ENTROPY": entropy, **warps._asdict()}
    # One program a processor, each with all of its shared memory; they share out the pieces of work between them.
    programs = min(row_tiles * splits, processors)
    return Call(stats_kernel, (programs,), (*operands, shard.column_T, *parts, *sizes), options, parts)


def _described(matrix: Tensor, rows: int, columns: int) -> TensorDescriptor:
    layout = gl.NVMMASharedLayout.get_default_for([rows, columns], _DTYPES[matrix.dtype])
    return TensorDescriptor.from_tensor(matrix, [rows, columns], layout)
