"""Keys and values of the sequences being decoded, one copy of a prompt for its whole group.

Each layer has two buffers: a *prompt* buffer with one row per group and a *new* buffer with one row per live sequence.
Rows of finished sequences are filled from the end (compaction), so the live ones are always the first rows.

Shape suffixes: B live rows, T time, n key heads, h head width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from synpro_kernels import DecodeRows

_CHUNK = 64  # positions by which buffers grow along time: growing copies all that is stored


@dataclass(frozen=True, kw_only=True)
class CacheShape:
    """What one position costs: layers, key heads of this rank, head width, storage dtype and device."""

    layers: int
    kv_heads: int
    head_dim: int
    dtype: torch.dtype
    device: torch.device

    @property
    def bytes_per_token(self) -> int:
        """Bytes of one position's keys and values over all layers of this rank."""
        return 2 * self.layers * self.kv_heads * self.head_dim * self.dtype.itemsize


class GrowingRows:
    """Per layer, keys and values [rows, n, T, h] in buffers that grow in both rows and time.

    Buffers start as zeros and grow by zeros: attention multiplies padding by weights of exactly 0, which a NaN
    in uninitialised memory would survive.
    """

    def __init__(self, shape: CacheShape) -> None:
        self._shape = shape
        self._buffers = [self._new(0, 0) for _ in range(shape.layers)]

    def _new(self, rows: int, length: int) -> Tensor:
        shape = self._shape
        # Heads before time: a row's keys of one head are one run of memory, as attention's products read them.
        size = (2, rows, shape.kv_heads, length, shape.head_dim)
        return torch.zeros(size, dtype=shape.dtype, device=shape.device)

    def reserve(self, rows: int, length: int) -> None:
        """Make room for `rows` rows of `length` positions; what is stored stays."""
        _, old_rows, _, old_length, _ = self._buffers[0].shape
        if rows <= old_rows and length <= old_length:
            return
        length = max(old_length, -(-length // _CHUNK) * _CHUNK)
        rows = max(old_rows, rows)
        for layer, old in enumerate(self._buffers):  # one layer at a time: the peak is one layer above the sum
            new = self._new(rows, length)
            new[:, :old_rows, :, :old_length] = old
            self._buffers[layer] = new

    def of_layer(self, layer: int) -> tuple[Tensor, Tensor]:
        """Keys and values [rows, n, T, h] of a layer, the buffers themselves."""
        return self._buffers[layer][0], self._buffers[layer][1]

    def write_rows(self, layer: int, first: int, key: Tensor, value: Tensor) -> None:
        """Store whole rows: key and value [rows, n, T, h] at rows `first`..."""
        rows, _, length, _ = key.shape
        self._buffers[layer][0, first : first + rows, :, :length] = key
        self._buffers[layer][1, first : first + rows, :, :length] = value

    def write_positions(self, layer: int, position_B: Tensor, key: Tensor, value: Tensor) -> None:
        """Store one position per row: key and value [B, n, h] at row b, time position_B[b]."""
        row_B = torch.arange(len(position_B), device=position_B.device)
        self._buffers[layer][0][row_B, :, position_B] = key
        self._buffers[layer][1][row_B, :, position_B] = value

    def move(self, source: int, target: int, length: int) -> None:
        """Copy the first `length` positions of row `source` over row `target`."""
        for buffer in self._buffers:  # so that the live rows stay the first ones, and `view` needs no index
            buffer[:, target, :, :length] = buffer[:, source, :, :length]


def decode_rows(group_of_row: list[int], prompt_lengths: list[int], device: torch.device) -> DecodeRows:
    """Lay the live rows out by group; each has one new position, and `advanced` tells the later ones."""
    count = [0] * len(prompt_lengths)
    member: list[int] = []
    for group in group_of_row:
        member.append(count[group])
        count[group] += 1
    most = max(count)
    place_of_row = [group * most + m for group, m in zip(group_of_row, member, strict=True)]
    # An empty place holds row 0: what is computed there is not read back.
    row_of_place = [0] * (len(count) * most)
    for row, place in enumerate(place_of_row):
        row_of_place[place] = row
    return DecodeRows(
        row_of_place=torch.tensor(row_of_place, device=device),
        place_of_row_B=torch.tensor(place_of_row, device=device),
        prompt_length_G=torch.tensor(prompt_lengths, device=device),
        prompt_longest=max(prompt_lengths),
        ragged_prompts=min(prompt_lengths) < max(prompt_lengths),
        new_length_B=torch.ones(len(group_of_row), dtype=torch.int64, device=device),
        new_longest=1,
        ragged_new=False,
    )
