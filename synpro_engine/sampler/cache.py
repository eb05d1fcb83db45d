"""Keys and values of the sequences being decoded, one copy of a prompt for its whole group, and attention over them.

Each layer has two buffers: a *prompt* buffer with one row per group and a *new* buffer with one row per live sequence.
Rows of finished sequences are filled from the end (compaction), so the live ones are always the first rows.

Attention has one query per key head and query head of each row, and is computed in fp32 whatever the cache's dtype.

Shape suffixes: B live rows, G live groups, M places per group, T time, n key heads, r query heads per key head, h head
width; N and Q are any rows and queries.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

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

    def view(self, layer: int, rows: int, length: int) -> tuple[Tensor, Tensor]:
        """Keys and values [rows, n, length, h] of a layer, as views of the buffers."""
        buffer = self._buffers[layer]
        return buffer[0, :rows, :, :length], buffer[1, :rows, :, :length]

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


@dataclass(frozen=True, kw_only=True)
class Places:
    """Where each live row sits in its group, for attention that reads a group's prompt once.

    row_of_place [G * M] int64: the row at each place (row 0 at empty places: computed, never read back);
    place_of_row_B int64: its inverse. M is the most live members that any group has.
    """

    row_of_place: Tensor
    place_of_row_B: Tensor
    groups: int


def places(group_of_row: list[int], groups: int, device: torch.device) -> Places:
    """Lay the live rows out by group."""
    count = [0] * groups
    member: list[int] = []
    for group in group_of_row:
        member.append(count[group])
        count[group] += 1
    most = max(count)
    place_of_row = [group * most + m for group, m in zip(group_of_row, member, strict=True)]
    row_of_place = [0] * (groups * most)
    for row, place in enumerate(place_of_row):
        row_of_place[place] = row
    return Places(
        row_of_place=torch.tensor(row_of_place, device=device),
        place_of_row_B=torch.tensor(place_of_row, device=device),
        groups=groups,
    )


def padding_bias(lengths: list[int], device: torch.device) -> Tensor | None:
    """Additive mask [rows, 1, 1, max length] fp32, -inf beyond each row's length; None when all are as long."""
    longest = max(lengths)
    if min(lengths) == longest:
        return None
    beyond = torch.arange(longest, device=device) >= torch.tensor(lengths, device=device)[:, None]
    # Never over a whole row: a prompt has a token, and a live row at least the one being fed, so no softmax is of
    # nothing.
    return torch.zeros(beyond.shape, device=device).masked_fill_(beyond, float("-inf"))[:, None, None]


def _attend(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    """Attention and the log of its softmax sum: query [N, n, Q, h], key and value [N, n, T, h], in fp32.

    Returns out [N, n, Q, h] and log_sum [N, n, Q, 1]. For a few queries per key this beats the fused kernel on
    the CPU and, unlike it, gives the log-sum. The largest weight is 1/sum, hence its log is minus the log-sum's rest.
    """
    score = query.float() @ key.float().mT
    if bias is not None:
        score += bias
    weight = torch.softmax(score, -1)
    log_sum = score.amax(-1, keepdim=True) - weight.amax(-1, keepdim=True).log()
    return weight @ value.float(), log_sum


def attend_in_two(
    query_Bnrh: Tensor,
    prompt: tuple[Tensor, Tensor],
    recent: tuple[Tensor, Tensor],
    places: Places,
    prompt_bias: Tensor | None,
    new_bias: Tensor | None,
) -> Tensor:
    """Attention over prompt and new positions, each softmaxed alone and merged by their log-sums; [B, n, r, h].

    All members of a group ask the prompt's keys together, so they are read once per group, not once per member.
    """
    n, r, h = query_Bnrh.shape[1:]
    # On the query rather than on the scores, of which there are r for each position.
    query_Bnrh = query_Bnrh * (1.0 / math.sqrt(h))
    groups = places.groups
    # [G, n, M r, h]: the members' queries side by side are one product a group, as in Hydragen (arXiv 2402.05099).
    grouped_query = query_Bnrh.index_select(0, places.row_of_place).unflatten(0, (groups, -1))
    grouped_query = grouped_query.transpose(1, 2).reshape(groups, n, -1, h)
    prompt_out, prompt_sum = (
        part.unflatten(2, (-1, r)).transpose(1, 2).flatten(0, 1).index_select(0, places.place_of_row_B)
        for part in _attend(grouped_query, *prompt, prompt_bias)
    )
    # Apart from the prompt's: one softmax over joined keys would want a copy of the prompt for every member.
    new_out, new_sum = _attend(query_Bnrh, *recent, new_bias)
    # A part's weight is e^log_sum over both; the sigmoid of their difference is that without an overflow.
    return torch.lerp(new_out, prompt_out, torch.sigmoid(prompt_sum - new_sum))
