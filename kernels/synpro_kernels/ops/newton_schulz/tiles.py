"""Tile shapes of the symmetric product, by architecture: an explicit table, no search at run time.

Tiles are square, so that the mirror of one is one. Two warp groups of 64 x 128 on sm_90; four stages are 128 KiB.
"""

from synpro_kernels.common.launch import Tile

_LARGE = {
    80: Tile(128, 128, 32, 8, 4),
    90: Tile(128, 128, 64, 8, 4),
    100: Tile(128, 128, 64, 8, 4),  # accumulators in tensor memory
}
# A short side has few tiles; smaller ones put more multiprocessors to work, and waste less above the diagonal.
_SMALL = {
    80: Tile(64, 64, 64, 4, 4),
    90: Tile(64, 64, 64, 4, 4),
    100: Tile(64, 64, 64, 4, 4),
}
_FEW_ROWS = 512


def symmetric_tile(capability: int, rows: int) -> Tile:
    """Return the tile for matrices of so many rows on capability 80, 90, ..."""
    table = _LARGE if rows > _FEW_ROWS else _SMALL
    # Families that the table lacks, like sm_120, have sm_86's shared memory: sm_80's tiles fit.
    return table.get(capability // 10 * 10, table[80])
