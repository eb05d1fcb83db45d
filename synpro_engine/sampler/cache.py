"""Keys and values of the sequences being decoded, one copy of a prompt for its whole group.

Each layer has two buffers: a *prompt* buffer with one row per group and a *new* buffer with one row per live sequence.
Rows of finished sequences are filled from the end (compaction), so the live ones are always the first rows.

Shape suffixes: B live rows, T time, n key heads, h head width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from synpro_kernels import DecodeRows, Slots

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


def decode_rows(
    group_of_row: Sequence[int], prompt_lengths: Sequence[int], fed: Sequence[int], device: torch.device
) -> DecodeRows:
    """Lay rows out by group, and where sequences are `fed` more than one token each, by sequence too.

    Each has one new position; whoever advances replaces `new_length_B` and what belongs to it.
    """
    row_of_place, place_of_row = _places(group_of_row, len(prompt_lengths))
    parts: list[Sequence[int]] = [row_of_place, place_of_row, prompt_lengths, [1] * len(group_of_row)]
    if several := max(fed) > 1:
        parts += _places([sequence for sequence, count in enumerate(fed) for _ in range(count)], len(fed))
    # One copy to the device: the host waits for each.
    flat = torch.tensor([number for part in parts for number in part], device=device)
    tensors = flat.split([len(part) for part in parts])
    return DecodeRows(
        row_of_place=tensors[0],
        place_of_row_B=tensors[1],
        prompt_length_G=tensors[2],
        prompt_longest=max(prompt_lengths),
        ragged_prompts=min(prompt_lengths) < max(prompt_lengths),
        new_length_B=tensors[3],
        new_longest=1,
        ragged_new=False,
        slots=Slots(row_of_slot=tensors[4], slot_of_row_B=tensors[5], fed=max(fed)) if several else None,
    )


def _places(owner_of_row: Sequence[int], owners: int) -> tuple[list[int], list[int]]:
    """As many places for each owner as the one with most rows has: the row at each place, and each row's place."""
    count, number = [0] * owners, list[int]()
    for owner in owner_of_row:
        number.append(count[owner])
        count[owner] += 1
    most = max(count)
    place_of_row = [owner * most + own for owner, own in zip(owner_of_row, number, strict=True)]
    # An empty place holds row 0: what is computed there is not read back.
    row_of_place = [0] * (owners * most)
    for row, place in enumerate(place_of_row):
        row_of_place[place] = row
    return row_of_place, place_of_row
