"""Tile shapes of the Triton kernels, by architecture: an explicit table, no search at run time.

A search would compile and time variants inside somebody's first training step, and pick by noise. These follow from the
matrix instruction's shape, shared memory and registers (README.md has the arithmetic); tests compile each of them.
"""

from synpro_kernels.common.launch import Tile

# Two warp groups of 64 x 256, wgmma's widest: 128 accumulator registers a thread. Four stages are 192 KiB.
_ROWS = {
    80: Tile(128, 256, 32, 8, 4),
    90: Tile(128, 256, 64, 8, 4),
    100: Tile(128, 256, 64, 8, 4),  # accumulators in tensor memory
}
# Few tokens (or a narrow other side) would leave most of such a tile empty.
_FEW_ROWS = {
    80: Tile(64, 128, 64, 4, 3),
    90: Tile(64, 128, 64, 4, 4),
    100: Tile(64, 128, 64, 4, 4),
}
# Two accumulators at a time (of x x^T and b b^T; of a segment and of all), so half of the width.
_TWO = {
    80: Tile(128, 64, 32, 8, 4),
    90: Tile(128, 128, 64, 8, 4),
    100: Tile(128, 128, 64, 8, 4),
}


def row_tile(capability: int, tokens: int, width: int) -> Tile:
    """Return the tile of the row-dot kernel for capability 80, 90, ...; small where a large one would be empty."""
    return _for_family(_ROWS if tokens > 64 and width > 128 else _FEW_ROWS, capability)


def pair_tile(capability: int, tokens_each: int) -> Tile:
    """Return the tile of the pair kernel: small where segments have few tokens on average."""
    # A segment's last tile is as large as the others, however few tokens are left for it: many short segments would
    # spend their products on rows that are thrown away.
    tile = _for_family(_TWO, capability)
    side = next((side for side in (16, 32, 64) if side >= tokens_each), None)
    return tile if side is None else tile._replace(BM=side, BN=side, num_warps=4)


def prefix_tile(capability: int) -> Tile:
    """Return the tile of the prefix kernel: BM outputs x BN inputs, BK tokens at a time."""
    return _for_family(_TWO, capability)


def _for_family(table: dict[int, Tile], capability: int) -> Tile:
    """The tile of a family. Those that the table lacks, like sm_120, have sm_86's shared memory: sm_80's tiles fit."""
    return table.get(capability // 10 * 10, table[80])
