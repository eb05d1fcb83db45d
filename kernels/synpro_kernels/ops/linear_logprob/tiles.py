"""Tile shapes of the Triton kernels, by architecture and operand size: an explicit table, no search at run time.

BM tokens x BN vocabulary entries, BK of the width at a time.

A tile moves (BM + BN) H elements from L2 for 2 BM BN H operations: at 128 x 256, H 4096, bf16 3.1 MB for 268 MFLOP, by
our estimate near what L2 delivers (docs/kernels.md). So tiles are as large as registers allow.

A search would compile and time dozens of variants inside somebody's first training step, and pick by noise. These are
chosen by shared memory, registers and the matrix instruction's shape (see README.md for the arithmetic), and checked
by compiling ahead of time.
"""

import torch

from synpro_kernels.common.launch import Tile, ceil_div

_HALF = {
    80: Tile(128, 128, 64, 8, 3),  # 96 KiB of operands; mma.sync leaves no registers for a larger tile
    90: Tile(128, 256, 64, 8, 4),  # 192 KiB; two warp groups of 64 x 256, wgmma's widest
    100: Tile(128, 256, 64, 8, 4),  # accumulators live in tensor memory
}
# fp32 operands are multiplied exactly (no tf32), outside the matrix units: small tiles that fit the registers.
_FLOAT = Tile(64, 64, 32, 8, 3)


def tile_for(capability: int, dtype: torch.dtype, tokens: int, *, plain: bool = True) -> Tile:
    """Return the tile for a compute capability (80, 86, 90, 100, ...); `plain` where registers are not short.

    They are where a bias or a soft cap is applied to the tile, or where the width is no multiple of BK.
    """
    if dtype == torch.float32:
        return _FLOAT
    # Families not in the table (consumer Blackwell has 99 KiB of shared memory) take the smallest tile.
    tile = _HALF.get(capability // 10 * 10, _HALF[80])
    # A bias, a cap or the masks of a ragged width need registers beside the accumulator's: half of its columns.
    if not plain:
        tile = tile._replace(BM=128, BN=128 if tile.BN > 128 else 64)
    # Few tokens (decoding, small groups): a narrow tile wastes fewer rows, and the weight is read once either way.
    return tile if tokens > 64 else tile._replace(BM=64, BN=min(tile.BN, 128), num_warps=4)


def tiles_each_for(row_tiles: int, column_tiles: int, processors: int) -> int:
    """How many tiles of the vocabulary one program takes, so that the last wave of programs is full or short.

    One program fills a processor, so the time is that of waves x tiles. At T 12,288 and V 131,072 on 132 processors two
    splits would be two waves of 256 tiles, of which the second leaves 72 processors idle; four are three of 128.
    """
    # Two programs a processor at least, so that one that is late delays half of the work. Of 8 to 600 row tiles by 512,
    # a dozen to choose from leave at most 8 % idle, where the fewest leave 50.
    fewest = max(1, min(column_tiles, 2 * processors // row_tiles))
    sizes = [ceil_div(column_tiles, splits) for splits in range(fewest, min(column_tiles, fewest + 11) + 1)]
    return min(sizes, key=lambda tiles: ceil_div(row_tiles * ceil_div(column_tiles, tiles), processors) * tiles)
